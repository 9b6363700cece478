"""Folders of transformers with tiny random models: as `save_pretrained` writes them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = [
    "IMAGE_CLASSES",
    "TEXT_CLASSES",
    "TEXT_LIMIT",
    "WORDS",
    "change_json",
    "write_bert",
    "write_clip",
    "write_vit",
]

IMAGE_CLASSES = 4
TEXT_CLASSES = 3
TEXT_LIMIT = 12
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "good", "bad", "very", "not", "is", "this")

_TRANSFORMERS: Any = transformers  # typed in parts only


def write_vit(folder: Path, *, seed: int = 0) -> Path:
    """Write a vision transformer for images of 16 x 16 with its image processor, and return the folder."""
    config = _TRANSFORMERS.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=IMAGE_CLASSES,
    )
    _save(_TRANSFORMERS.ViTForImageClassification, config, folder, seed=seed)
    _TRANSFORMERS.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def write_bert(folder: Path, *, seed: int = 0) -> Path:
    """Write a text classifier that takes `TEXT_LIMIT` tokens with its tokenizer, and return the folder."""
    config = _TRANSFORMERS.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=TEXT_LIMIT,
        num_labels=TEXT_CLASSES,
    )
    _save(_TRANSFORMERS.BertForSequenceClassification, config, folder, seed=seed)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
    # By position: the name of the argument changed in version 5, and so do the files that are written.
    _TRANSFORMERS.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP of images of 16 x 16 and 50 tokens, the third of which ends a text, and return the folder.

    Its tokenizer takes texts apart into letters.
    """
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    images = {"image_size": 16, "patch_size": 8}
    config = _TRANSFORMERS.CLIPConfig(text_config=sizes | tokens, vision_config=sizes | images, projection_dim=12)
    _save(_TRANSFORMERS.CLIPModel, config, folder, seed=seed)
    letters = [f"{letter}{end}" for end in ("", "</w>") for letter in "acdefghoprst"]
    vocabulary = {text: place for place, text in enumerate(["<|pad|>", "<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _TRANSFORMERS.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


def change_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON object in a file; None removes one."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")


def _save(kind: Any, config: Any, folder: Path, *, seed: int) -> None:
    bars = _TRANSFORMERS.utils.logging
    bars.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    bars.enable_progress_bar()

"""Caches of hubs on this machine with tiny random models, as downloads leave them; the network is not asked."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from tests.unit.adapters.hub_folders import write_bert

__all__ = [
    "TIMM_CLASSES",
    "TORCHVISION",
    "cached",
    "is_installed",
    "offline_cache",
    "write_sentence_encoder",
    "write_timm",
    "write_torchvision",
]

TIMM_CLASSES = 5
TORCHVISION = "resnet18"
_COMMIT = "0" * 40


def offline_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hubs have their caches in a folder, and no network, and return the folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    return folder


def cached(cache: Path, name: str, source: Path) -> Path:
    """Copy a folder into the cache of Hugging Face as the model of a name, and return the copy."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(_COMMIT, encoding="utf-8")
    return copytree(source, place / "snapshots" / _COMMIT)


def write_timm(folder: Path, *, classes: int = TIMM_CLASSES, seed: int = 0) -> Path:
    """Write a model of timm for images of 32 x 32 as its `push_to_hf_hub` does, and return the folder."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = timm.create_model("test_resnet", num_classes=classes).state_dict()
    save_file(state, folder / "model.safetensors")
    inputs = {
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    config = {"architecture": "test_resnet", "num_classes": classes, "pretrained_cfg": inputs}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_torchvision(cache: Path, *, seed: int = 0) -> None:
    """Write random weights of `TORCHVISION` into the cache of torch, under the name of the pretrained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = models.get_model(TORCHVISION, weights=None).state_dict()
    weights: Any = models.get_model_weights(TORCHVISION)["IMAGENET1K_V1"]
    path = cache / "torch" / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(state, path)


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return find_spec(package) is not None


def write_sentence_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a sentence encoder of 16 features of length 1, by sentence-transformers itself, and return the folder."""
    from sentence_transformers import SentenceTransformer

    place = "sentence_transformer.modules" if is_installed("sentence_transformers.sentence_transformer") else "models"
    parts = import_module(f"sentence_transformers.{place}")
    bert = write_bert(folder.with_name(f"{folder.name}-bert"), seed=seed)
    modules = [parts.Transformer(str(bert)), parts.Pooling(16), parts.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder

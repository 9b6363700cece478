"""Classifiers of transformers from a folder on this machine, with the folder's own image processor or tokenizer.

Nothing is downloaded and no code of the folder is run: weights are safetensors, and the architecture is one that
transformers has itself.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opnp.adapters.transformers_inputs import TokenizerTransform, TransformersImageTransform
from opnp.data import file_digest
from opnp.errors import DataFileError, MissingExtraError, MissingFileError, OpnpError, OptionError

__all__ = ["named_weights", "transformers_model"]

_KINDS: dict[str, Literal["image", "text"]] = {
    "ForImageClassification": "image",
    "ForImageClassificationWithTeacher": "image",
    "ForSequenceClassification": "text",
}
"""Endings of architectures that are classifiers, and what they take."""

_LOCAL: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_SHOWN = 4
_UNLIMITED = 1_000_000
"""Tokenizers that know no limit name a larger one than this."""


def transformers_model(
    folder: str | Path, *, classes: int | None = None, is_pretrained: bool = True
) -> tuple[nn.Module, TransformersImageTransform | TokenizerTransform]:
    """Return the image or text classifier in a folder, in float32, and what makes its inputs.

    The folder is as `save_pretrained` of model and processor or tokenizer writes it. Texts are cut to what tokenizer
    and model take, and padded with attention masks.

    Args:
        folder: Folder with ``config.json``, ``model.safetensors``, and ``preprocessor_config.json`` or the files of a
            tokenizer.
        classes: Rows of the head, for weights that are loaded afterwards; None for those of the folder.
        is_pretrained: Whether the model gets the weights of the folder; random ones else.

    Returns:
        The model, and the transform of its inputs.

    Raises:
        MissingFileError: If there is no such folder, or it holds no ``config.json`` or no weights.
        OptionError: If the architecture is no classifier of images or texts, needs code of the folder, its weights are
            pickled, or image processor, tokenizer or padding token is missing.
        DataFileError: If files are damaged, or the weights lack a part of the model.
        MissingExtraError: If transformers is not installed.

    """
    folder = Path(folder)
    settings = _settings(folder)
    architecture, kind = _architecture(settings, folder)
    files = _PROCESSORS if kind == "image" else (*_TOKENIZERS, *_SETTINGS)
    present = [name for name in files if (folder / name).is_file()]
    _require_inputs(folder, present, kind)
    _require_pillow(kind)
    for name in ("config.json", *_PROCESSORS, "tokenizer_config.json"):
        _require_no_code(folder / name)
    if is_pretrained:
        _require_weights(folder)
    transformers = _transformers()
    built = getattr(transformers, architecture, None)
    if built is None:
        raise OptionError(
            f"{folder / 'config.json'}: transformers {transformers.__version__} has no {architecture}. Install the "
            f"version that the model was saved with ({settings.get('transformers_version', 'unknown')}), or a later "
            f"one.",
        )
    with _quiet(), _told(folder), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
        if classes is not None:
            config.num_labels = classes
        if is_pretrained:
            model, found = built.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below, where transformers gives but a number of them
                **_LOCAL,
            )
            _require_shapes(folder, sorted(found["mismatched_keys"]))
            _require_whole(folder, sorted(found["missing_keys"]))
        else:
            model = built(config)
        model = model.float()
        if kind == "image":
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **_LOCAL)
            return model, TransformersImageTransform(processor, channels=getattr(config, "num_channels", 3))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
        return model, TokenizerTransform(
            tokenizer,
            limit=_limit(tokenizer, model),
            keywords=frozenset(inspect.signature(model.forward).parameters),
            digests={name: file_digest(folder / name) for name in present},
        )


def named_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that a model of transformers has for them, as far as they are all of it.

    Files of `save_pretrained` have the names of older versions, which transformers translates when it loads them.

    Args:
        model: The model; it is not changed.
        weights: A state dict, by the names of either.

    Returns:
        The weights by the model's names; those given, where they are not exactly what the model needs.

    """
    own = model.state_dict()
    if weights.keys() == own.keys() or any(value.is_meta for value in own.values()):
        return dict(weights)
    kind: Any = type(model)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            made, found = kind.from_pretrained(
                None, config=model.config, state_dict=dict(weights), output_loading_info=True
            )
    except RuntimeError:  # of other shapes
        return dict(weights)
    if found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"]:
        return dict(weights)
    loaded: dict[str, Tensor] = made.state_dict()
    return loaded


def _settings(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says."""
    if not folder.is_dir():
        raise MissingFileError(
            f"`hf:FOLDER` must name a folder on this machine, and {folder} is none. Nothing is downloaded: "
            f"`hf download NAME --local-dir FOLDER` fetches a model, `model.save_pretrained(FOLDER)` writes one.",
        )
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"{folder} holds no config.json, so that it is no model of transformers: `model.save_pretrained(FOLDER)` "
            f"writes one.",
        )
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataFileError(f"{path} is no readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise DataFileError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found


def _architecture(settings: Mapping[str, Any], folder: Path) -> tuple[str, Literal["image", "text"]]:
    names = settings.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    for name in names:
        for ending, kind in _KINDS.items():
            if name.endswith(ending) and name.isidentifier():
                return name, kind
    raise OptionError(
        f"{folder / 'config.json'} must name a classifier in `architectures`, one that ends in {', '.join(_KINDS)}, "
        f"got {', '.join(names) or 'none'}.",
    )


def _require_no_code(path: Path) -> None:
    """Raise if a settings file asks for classes that are written in the folder or on the hub."""
    if path.is_file() and _json(path).get("auto_map"):
        raise OptionError(
            f"{path} asks for code that comes with the model (`auto_map`), which is never run here. If transformers "
            f"has the architecture itself, remove `auto_map` from the file; else make the model in a module of your "
            f"own, and give `module:callable`.",
        )


def _require_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise OptionError(
            f"{folder} holds an adapter to weights that are elsewhere (adapter_config.json): merge it into the model "
            f"with `merge_and_unload()`, and save that.",
        )
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.h5"), *folder.glob("*.msgpack")))
    if pickled:
        raise OptionError(
            f"{folder} holds its weights as {', '.join(pickled)} alone, which is not read: unpickling can run code. "
            f"Where you trust the file, `model.save_pretrained(FOLDER)` writes model.safetensors.",
        )
    raise MissingFileError(f"{folder} holds no model.safetensors: `model.save_pretrained(FOLDER)` writes it.")


def _require_inputs(folder: Path, present: Sequence[str], kind: Literal["image", "text"]) -> None:
    """Raise if what makes the model's inputs is not there; transformers would make an empty tokenizer."""
    if kind == "image" and not present:
        raise OptionError(
            f"{folder} holds no {_PROCESSORS[0]}, which says how images become inputs of the model: "
            f"`processor.save_pretrained(FOLDER)` writes it.",
        )
    if kind == "text" and not set(present) & set(_TOKENIZERS):
        raise OptionError(
            f"{folder} holds no {_TOKENIZERS[0]}, nor {', '.join(_TOKENIZERS[1:])}: "
            f"`tokenizer.save_pretrained(FOLDER)` writes the tokenizer that the model was trained with.",
        )


def _require_whole(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise DataFileError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, which would be random: "
            f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}. Is it a model that was not "
            f"yet fine-tuned to classify?",
        )


def _require_shapes(folder: Path, other: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    if other:
        named = [f"{name} is {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in other[:_SHOWN]]
        raise DataFileError(
            f"config.json in {folder} says other sizes than its weights have, in {len(other)} tensors: "
            f"{', '.join(named)}{', ...' if len(other) > _SHOWN else ''}. Give config.json the sizes of the training.",
        )


def _require_pillow(kind: Literal["image", "text"]) -> None:
    if kind == "image" and find_spec("PIL") is None:
        raise MissingExtraError("`hf:` models of images need Pillow, which is not installed: `pip install 'opnp[hf]'`.")


def _limit(tokenizer: Any, model: nn.Module) -> int | None:  # noqa: ANN401  # as above
    """Return how many tokens of a text the model takes, or None where nothing says so."""
    config: Any = model.config
    said = [tokenizer.model_max_length, *(getattr(config, name, None) for name in ("max_position_embeddings", "n_ctx"))]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            # RoBERTa and its kin count positions from behind the padding index.
            said.append(layer.num_embeddings - (0 if layer.padding_idx is None else layer.padding_idx + 1))
    limits = [int(value) for value in said if isinstance(value, int) and 0 < value < _UNLIMITED]
    return min(limits, default=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing bars and reports to the terminal, and set it back afterwards."""
    from transformers import utils

    logging: Any = utils.logging  # typed in parts only
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn what transformers says of a folder that it cannot read into one message."""
    try:
        yield
    except OpnpError:
        raise
    except Exception as error:
        raise DataFileError(
            f"transformers could not read {folder}: {type(error).__name__}: {str(error).strip()}",
        ) from error


def _transformers() -> Any:  # noqa: ANN401  # a module
    if find_spec("transformers") is None:
        raise MissingExtraError("`hf:` models need transformers, which is not installed: `pip install 'opnp[hf]'`.")
    import transformers

    return transformers

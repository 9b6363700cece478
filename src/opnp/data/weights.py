"""Weights of a model on disk: a state dict as safetensors, or as torch saves it. Nothing else is unpickled."""

import os
import re
from collections.abc import Mapping
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opnp.errors import DataFileError
from opnp.files import existing_file

__all__ = ["load_weights", "read_weights"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the state dict beside other things."""

_PARALLEL = "module."
"""What `DataParallel` puts before every name."""

_SHOWN = 4


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict of a file.

    A checkpoint that holds it under ``state_dict``, ``model_state_dict`` or ``model`` is looked into, and ``module.``
    before all names is dropped.

    Args:
        path: A file ending in ``.safetensors``, or one that `torch.save` wrote.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or holds anything but tensors by name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.weight": torch.ones(2)}}, Path(folder) / "last.pt")
        ...     read_weights(Path(folder) / "last.pt")
        {'weight': tensor([1., 1.])}

    """
    path = existing_file(path, content="the model's weights")
    try:
        found: object = (
            load_file(path)
            if path.suffix.lower() == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # weights alone
        )
    except SafetensorError as error:
        raise DataFileError(f"{path} is no readable safetensors file ({error}).") from error
    except Exception as error:  # whatever bytes that are no checkpoint make of torch's reader
        raise DataFileError(
            f"{path} is no state dict that can be read without running code: {_reason(error)}. Save one with "
            f"`torch.save(model.state_dict(), path)`, or as safetensors.",
        ) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataFileError(f"{path} must hold tensors by name, as `model.state_dict()` does, but it does not.")
    is_parallel = all(str(name).startswith(_PARALLEL) for name in found)
    return {str(name).removeprefix(_PARALLEL) if is_parallel else str(name): value for name, value in found.items()}


def _reason(error: Exception) -> str:
    """Return why torch could not read a file, in words of this project: torch's own advise to run the file's code."""
    named = re.search(r"GLOBAL ([\w.]*\w)", str(error)) if isinstance(error, UnpicklingError) else None
    return "it is damaged, or of another format" if named is None else f"it holds more than tensors ({named[1]})"


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, path: str | os.PathLike[str]) -> None:
    """Load a state dict into a model; every name and shape must fit.

    Args:
        model: The model, changed in place.
        weights: The state dict.
        path: Where it comes from, for the message.

    Raises:
        DataFileError: If names, shapes or kinds (complex, sparse, quantised, without content) differ; then the model is
            as it was. The message lists the first of them.

    """
    own = model.state_dict()
    if own and all(name.startswith(_PARALLEL) for name in own):  # a model that is wrapped itself
        weights = {name if name.startswith(_PARALLEL) else _PARALLEL + name: value for name, value in weights.items()}
    # Files from before batch norm counted its batches lack that number, which no answer depends on.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    pairs = {name: (weights[name], own[name]) for name in own if name in weights}
    shapes = {name: (tuple(given.shape), tuple(wanted.shape)) for name, (given, wanted) in pairs.items()}
    kinds = {name: (_kind(given), _kind(wanted)) for name, (given, wanted) in pairs.items()}
    problems = [
        f"{title} {len(names)}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for title, names in {
            "missing": missing,
            "unexpected": [name for name in weights if name not in own],
            "of another shape": [f"{name} {one} for {other}" for name, (one, other) in shapes.items() if one != other],
            "of another kind": [f"{name} {one} for {other}" for name, (one, other) in kinds.items() if one != other],
        }.items()
        if names
    ]
    if problems:
        raise DataFileError(f"{path} does not fit the model. Of its names, {'; '.join(problems)}.")
    counters = {name: value for name, value in own.items() if name not in weights}
    model.load_state_dict({**weights, **counters})


def _kind(tensor: Tensor) -> str:
    """Return what keeps values from being copied between tensors of one shape, as a text."""
    content = "complex" if tensor.is_complex() else "quantised" if tensor.is_quantized else "real"
    return f"{content} {str(tensor.layout).removeprefix('torch.')}{' without content' if tensor.is_meta else ''}"

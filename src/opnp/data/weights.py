"""Weights of models in files: state dicts and checkpoints, under the names of the model that they go to.

Of a file that `torch.save` wrote nothing but tensors is unpickled.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opnp.errors import DataFileError
from opnp.files import existing_file

__all__ = ["fitting_names", "load_weights", "read_weights"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the state dict beside other things."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before every name: of `DataParallel`, of `torch.compile`, and of modules that hold a model."""
_AVERAGED = "n_averaged"
"""What averages of weights hold beside them."""
_COUNTER = "num_batches_tracked"

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
    prefix = _PREFIXES[0] if all(str(name).startswith(_PREFIXES[0]) for name in found) else ""
    return {str(name).removeprefix(prefix): value for name, value in found.items()}


def _reason(error: Exception) -> str:
    """Return why torch could not read a file, in words of this project: torch's own advise to run the file's code."""
    named = re.search(r"GLOBAL ([\w.]*\w)", str(error)) if isinstance(error, UnpicklingError) else None
    return "it is damaged, or of another format" if named is None else f"it holds more than tensors ({named[1]})"


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, path: str | os.PathLike[str]) -> None:
    """Load a state dict into a model; every name and shape must fit, once prefixes of wrappers are dropped.

    Args:
        model: The model, changed in place.
        weights: The state dict.
        path: Where it comes from, for the message.

    Raises:
        DataFileError: If names, shapes or kinds (complex, sparse, quantised, without content) differ; then the model is
            as it was. The message lists the first of them.

    """
    own, weights = model.state_dict(), fitting_names(model, weights)
    # Files from before batch norm counted its batches lack that number, which no answer depends on.
    missing = [name for name in own if name not in weights and not name.endswith(_COUNTER)]
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


def fitting_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the model's own names, where prefixes of wrappers are all that differs.

    Wrappers are `DataParallel`, `torch.compile`, averages of `torch.optim.swa_utils`, and modules that hold the model
    as ``model`` or ``net``, one in another too. Where names differ otherwise, the state dict comes back as it is.

    Example:
        >>> sorted(
        ...     fitting_names(
        ...         nn.Linear(1, 1), {"model._orig_mod.weight": torch.ones(1, 1), "model._orig_mod.bias": torch.ones(1)}
        ...     )
        ... )
        ['bias', 'weight']

    """
    own = list(model.state_dict())
    given = {name: tensor for name, tensor in weights.items() if name in own or name != _AVERAGED}
    for mine in _prefixes(own):
        needed = {name.removeprefix(mine) for name in own if not name.endswith(_COUNTER)}
        for theirs in _prefixes(given):
            names = {name: name.removeprefix(theirs) for name in given}
            if {name for name in names.values() if not name.endswith(_COUNTER)} == needed:
                return {mine + names[name]: tensor for name, tensor in given.items()}
    return dict(weights)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes of wrappers that all names have, from none to the longest."""
    names, found = list(names), [""]
    while True:
        longer = [found[-1] + each for each in _PREFIXES if all(name.startswith(found[-1] + each) for name in names)]
        if not names or not longer:
            return found
        found.append(longer[0])


def _kind(tensor: Tensor) -> str:
    """Return what keeps values from being copied between tensors of one shape, as a text."""
    content = "complex" if tensor.is_complex() else "quantised" if tensor.is_quantized else "real"
    return f"{content} {str(tensor.layout).removeprefix('torch.')}{' without content' if tensor.is_meta else ''}"

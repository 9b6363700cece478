"""Whether what was found is the head of a classifier, and whether the model answers the same when it runs again."""

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from opnp.core.checks import require_finite
from opnp.errors import HeadNotFoundError, InputTypeError, OpnpWarning, ShapeError
from opnp.model.head import Head, require_module
from opnp.model.layers import tensor_of
from opnp.model.listening import remove_hooks
from opnp.model.undisturbed import Undisturbed

__all__ = ["random_state", "require_classifier", "require_values", "tell_random_features", "told_batch_statistics"]

_SAME = 1e-3
"""How far features of a second run may move, relative to the largest: rounding."""


def require_values(model: nn.Module) -> None:
    """Raise if the model is none, or has parameters that have no values yet.

    Raises:
        InputTypeError: If `model` is no module.
        HeadNotFoundError: If it has lazy layers that were never run.

    """
    require_module(model)
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise HeadNotFoundError(
            "The model has lazy layers that were never run: they would get their weights now, at random. Run it once "
            "first, or load its weights.",
        )


def require_classifier(head: Head, *, is_plain: bool) -> None:
    """Raise if a head is none of a classifier, or not linear in what it does.

    Args:
        head: The head.
        is_plain: Whether its output was what a layer of its kind makes of its input.

    Raises:
        HeadNotFoundError: If it has a forward of its own.
        InputTypeError: If its weight or bias cannot be read as numbers: on the meta device, sparse, quantised, complex.
        NonFiniteError: If these are not finite.
        ShapeError: If it has one row.

    """
    for name in ("weight", "bias"):
        tensor = tensor_of(head.module, name)
        if tensor is not None:
            _require_numbers(tensor, f"The {name} of the head {head.label}")
    if not is_plain:
        raise HeadNotFoundError(
            f"The head {head.label} is a {type(head.module).__name__} with a forward of its own: its output is not "
            f"`features @ weight.T + bias`, so that pruning its weight is not what the method says. Where an equal "
            f"linear layer exists, cache the features and use `fit_features` with its weight and bias.",
        )
    if len(head.weight) < 2:
        raise ShapeError(
            f"The head {head.label} has one output: a classifier needs at least two classes. One logit z says the "
            f"same as the two logits -z/2 and z/2: give `fit_features` the weight `torch.cat([-w, w]) / 2`, and "
            f"the bias alike.",
        )
    require_finite(head.weight, name="weight", where=f" of the head {head.label}")
    if head.bias is not None:
        require_finite(head.bias, name="bias", where=f" of the head {head.label}")


def random_state(device: torch.device | None) -> tuple[object, ...]:
    """Return the states of the generators of random numbers that a forward may draw from, as values that compare."""
    state: list[object] = [torch.random.get_rng_state().numpy().tobytes(), random.getstate()]
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # the generator that a model would draw from
    state += [name, np.asarray(keys).tobytes(), *rest]
    if device is not None and device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(state)


def tell_random_features(first: Tensor, again: Callable[[], Tensor | None]) -> None:
    """Warn if the features of a batch are others in a second run.

    Args:
        first: The features.
        again: Runs the same batch again and returns its features, or None if there are none.

    Warns:
        OpnpWarning: If they are others.

    """
    second = again()
    if second is not None and second.shape == first.shape:
        tolerance = _SAME * float(first.abs().max()) if first.numel() else 0.0
        if torch.allclose(first, second, rtol=0, atol=tolerance, equal_nan=True):
            return
    warnings.warn(
        "The model draws random numbers in eval mode, and has other features for the same inputs in a second run: a "
        "dropout that ignores eval mode (`functional.dropout` with `training=True`), noise, or random crops in its "
        "forward. Scores, p-values and verdicts of one input will differ from run to run. Leave that out in eval mode, "
        "as nn.Dropout does: `functional.dropout(..., training=self.training)`.",
        OpnpWarning,
        stacklevel=2,
    )


@contextmanager
def told_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Warn if a batch norm that runs inside takes mean and variance of the batch, although in eval mode it has others.

    Warns:
        OpnpWarning: If so.

    """
    owner = threading.get_ident()
    found: dict[str, str] = {}

    def look(name: str, module: _BatchNorm, _args: object) -> None:
        if threading.get_ident() == owner and (module.training or module.running_mean is None):
            found[name] = "the model sets it to training mode" if module.training else "it has no running statistics"

    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    handles: list[RemovableHandle] = []
    try:
        with Undisturbed():
            handles += (module.register_forward_pre_hook(partial(look, name)) for name, module in norms.items())
        yield
    finally:
        with Undisturbed():
            remove_hooks(handles, model)
    if not found:
        return
    name, reason = next(iter(found.items()))
    more = f", and {len(found) - 1} more," if len(found) > 1 else ""
    warnings.warn(
        f"The layer {name!r} ({type(norms[name]).__name__}){more} normalises by mean and variance of the batch in eval "
        f"mode too: {reason}. If the head's features come through it, features, scores and verdicts of an input depend "
        f"on the other inputs of its batch. Train with `track_running_stats=True`, and leave the layer in eval mode.",
        OpnpWarning,
        stacklevel=2,
    )


def _require_numbers(tensor: Tensor, what: str) -> None:
    """Raise if a tensor is none of plain floating-point numbers in memory."""
    if tensor.is_meta:
        raise InputTypeError(
            f"{what} is on the meta device, where it has no values: load the model's weights first, or move what was "
            f"offloaded back to a device.",
        )
    if tensor.layout is not torch.strided:
        raise InputTypeError(
            f"{what} is sparse ({tensor.layout}): it must be dense. Give the layer a dense weight: "
            f"`torch.nn.Parameter(layer.weight.to_dense())`.",
        )
    if tensor.is_quantized or not tensor.is_floating_point():
        raise InputTypeError(
            f"{what} must be of floating-point numbers, got {tensor.dtype}. Give the model as it was before it was "
            f"quantised, or replace this layer by a real nn.Linear of the same numbers.",
        )

"""Batches as loaders yield them: what goes into the model.

A batch may be a tensor, a mapping of tensors (Hugging Face), or a tuple or list whose first item is one of those and
whose second, if any, holds the labels.
"""

import inspect
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from opnp.errors import InputTypeError

__all__ = ["InputAxes", "Inputs", "as_batch", "axes_of", "inputs_of", "is_empty", "labels_of", "run_model"]

Inputs = Tensor | Mapping[str, object]
InputAxes = int | dict[str, int]
"""Number of axes of a batch of inputs, the batch axis counted: of the tensor, or of each tensor by key."""

_LABEL_KEYS = ("labels", "label")


def inputs_of(batch: object) -> Inputs:
    """Return the model's inputs of a batch: the tensor, or the mapping without its labels.

    Args:
        batch: A tensor, a mapping, or a tuple or list that begins with one of those.

    Returns:
        A tensor, or a mapping of keyword arguments.

    Raises:
        InputTypeError: If `batch` is none of those, or a list of inputs that were not stacked.

    Example:
        >>> import torch
        >>> inputs_of((torch.ones(2, 3), torch.tensor([0, 1]))).shape
        torch.Size([2, 3])
        >>> sorted(inputs_of({"pixel_values": torch.ones(2, 3), "labels": torch.tensor([0, 1])}))
        ['pixel_values']

    """
    if isinstance(batch, tuple | list) and batch:
        if _is_unstacked(batch):
            raise InputTypeError(
                f"The batch is a list of {len(batch)} tensors of shape {tuple(batch[0].shape)}: of a list the first is "
                f"taken as the inputs and the second as labels. Stack them, `torch.stack(batch)`, or give what the "
                f"model takes as a mapping.",
            )
        batch = batch[0]
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in _LABEL_KEYS}
    raise InputTypeError(
        f"A batch must be a tensor, a mapping of tensors, or a tuple (inputs, labels), got {_described(batch)}. Let "
        f"the loader's `collate_fn` return one of those.",
    )


def labels_of(batch: object) -> Tensor | None:
    """Return the integer labels of a batch, shape ``(batch,)``, or None where it carries none.

    Example:
        >>> import torch
        >>> labels_of((torch.ones(2, 3), torch.tensor([0, 1])))
        tensor([0, 1])
        >>> labels_of(torch.ones(2, 3)) is None
        True

    """
    found: object = None
    if isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[1]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    if isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point():
        return found
    return None


def is_empty(inputs: Inputs) -> bool:
    """Return whether a batch of inputs holds no sample."""
    tensors = [inputs] if isinstance(inputs, Tensor) else [item for item in inputs.values() if isinstance(item, Tensor)]
    return any(item.ndim > 0 and len(item) == 0 for item in tensors)


def axes_of(inputs: Inputs) -> InputAxes:
    """Return the number of axes of a batch of inputs, so that a single input can be told from a batch later."""
    if isinstance(inputs, Tensor):
        return inputs.ndim
    return {key: value.ndim for key, value in inputs.items() if isinstance(value, Tensor)}


def as_batch(inputs: Inputs, axes: InputAxes | None) -> tuple[Inputs, bool]:
    """Return `inputs` with a batch axis, and whether that had to be added because it was one input.

    Args:
        inputs: One input or a batch of them.
        axes: Number of axes that a batch has, from `axes_of`; None if unknown, then `inputs` counts as a batch.

    Returns:
        The batch, and True if `inputs` was a single one.

    Example:
        >>> import torch
        >>> batch, is_single = as_batch(torch.ones(3, 8, 8), 4)
        >>> batch.shape, is_single
        (torch.Size([1, 3, 8, 8]), True)

    """
    if isinstance(inputs, Tensor):
        is_single = isinstance(axes, int) and inputs.ndim == axes - 1
        return (inputs[None] if is_single else inputs), is_single
    if not isinstance(axes, dict):
        return inputs, False
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor) and key in axes}
    is_single = bool(tensors) and all(value.ndim == axes[key] - 1 for key, value in tensors.items())
    if not is_single:
        return inputs, False
    return {key: value[None] if isinstance(value, Tensor) else value for key, value in inputs.items()}, True


def run_model(model: nn.Module, inputs: Inputs, *, device: torch.device | None) -> object:
    """Return what the model answers to `inputs`, moved to `device` first.

    A mapping is passed by keyword; one with a single tensor that the model's forward has no such keyword for is passed
    by position.

    Raises:
        InputTypeError: If the model refuses integer inputs, as a model of images does that were left as uint8; or
            inputs of another precision than its weights; or its forward takes other arguments; or its parameters are on
            the meta device.

    """
    args: tuple[object, ...] = ()
    named: dict[str, object] = {}
    if isinstance(inputs, Tensor):
        args = (inputs.to(device),)
    else:
        named = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        if len(named) == 1 and not _accepts(model, next(iter(named))):
            args, named = tuple(named.values()), {}
    try:
        return model(*args, **named)
    except TypeError as error:
        reason = _mismatch(model, args, named)
        if reason is not None:
            raise InputTypeError(reason) from error
        raise
    except RuntimeError as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputTypeError(
                f"The model has parameters on the meta device, where they have no values, and cannot run: {error}. "
                f"Load its weights first.",
            ) from error
        integers = _integer_dtypes(inputs)
        floats = sorted({str(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()})
        if integers and floats and _is_about_dtypes(error):
            raise InputTypeError(
                f"The model has {' and '.join(floats)} weights and refused inputs of {' and '.join(integers)}: "
                f"{error}. If these are images, scale them first, as in training: `images.float() / 255`, then "
                f"normalise.",
            ) from error
        others = sorted(set(_float_dtypes(inputs)) - set(floats))
        if others and floats and _is_about_dtypes(error):
            raise InputTypeError(
                f"The model has {' and '.join(floats)} weights and refused inputs of {' and '.join(others)}: {error}. "
                f"Let the loader give inputs in the precision of the first layers, `inputs.to({floats[0]})`, or take "
                f"the model in that of the inputs: `model.to({others[0]})`.",
            ) from error
        raise


def _is_about_dtypes(error: RuntimeError) -> bool:
    return re.search(r"\b(d?type|not implemented for)\b", str(error)) is not None


def _accepts(model: nn.Module, keyword: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return keyword in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


def _mismatch(model: nn.Module, args: tuple[object, ...], named: Mapping[str, object]) -> str | None:
    """Return why the model's forward cannot be called with these arguments, in words; None if it can."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        given = f"the keywords {', '.join(named)}" if named else "one tensor by position"
        return (
            f"The model's forward takes {signature}, and a batch gave it {given}: {error}. Let the loader give a "
            f"mapping from names of arguments to tensors."
        )
    return None


def _float_dtypes(inputs: Inputs) -> list[str]:
    tensors = [inputs] if isinstance(inputs, Tensor) else [item for item in inputs.values() if isinstance(item, Tensor)]
    return sorted({str(item.dtype) for item in tensors if item.is_floating_point()})


def _integer_dtypes(inputs: Inputs) -> list[str]:
    tensors = [inputs] if isinstance(inputs, Tensor) else [item for item in inputs.values() if isinstance(item, Tensor)]
    return sorted({str(item.dtype) for item in tensors if not item.is_floating_point() and not item.is_complex()})


def _described(batch: object) -> str:
    if isinstance(batch, tuple | list):
        return f"an empty {type(batch).__name__}" if not batch else f"a {type(batch).__name__} in its first place"
    return type(batch).__name__


def _is_unstacked(batch: Sequence[object]) -> bool:
    """Return whether a list is one of inputs: three or more tensors of floats of one shape; labels are not that."""
    shapes = {each.shape if isinstance(each, Tensor) and each.is_floating_point() else None for each in batch}
    return len(batch) > 2 and len(shapes) == 1 and None not in shapes

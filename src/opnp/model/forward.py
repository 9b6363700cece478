"""One forward pass: inputs in, the logits out, and what a layer inside was given."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opnp.errors import HeadNotFoundError, InputTypeError, InsufficientMemoryError, OptionError

__all__ = [
    "Inputs",
    "LogitsSelector",
    "called",
    "is_out_of_memory",
    "logits_of",
    "no_logits_message",
    "plain_tensor",
    "run_model",
    "sole_input",
    "tensors_of",
]

Inputs = Tensor | Mapping[str, object]
LogitsSelector = int | str | Callable[[Any], Tensor]
"""Where the logits are: index in a tuple, key or attribute, or a function from the model's output to the logits."""

_SHOWN = 12
_SHORTAGE = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED")


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of a batch of inputs."""
    return [inputs] if isinstance(inputs, Tensor) else [item for item in inputs.values() if isinstance(item, Tensor)]


def run_model(model: nn.Module, inputs: Inputs, *, device: torch.device | None) -> object:
    """Return what the model answers to `inputs`, moved to `device` first.

    A mapping is passed by keyword; one with a single tensor that the model's forward has no such keyword for is passed
    by position.

    Raises:
        InputTypeError: If the model refuses integer inputs, as a model of images does that were left as uint8; or
            inputs of another precision than its weights; or its forward takes other arguments; or its parameters are on
            the meta device.

    """
    try:
        return called(model, inputs, device=device)
    except (TypeError, RuntimeError) as error:
        reason = _mismatch(model, inputs) if isinstance(error, TypeError) else _wrong_dtypes(model, inputs, error)
        if reason is None:
            raise
        raise InputTypeError(reason) from error


def called(model: nn.Module, inputs: Inputs, *, device: torch.device | None) -> object:
    """Return what `run_model` does; what the model raises stays as it is."""
    args, named = _arguments(model, inputs)
    return model(
        *(each.to(device) if isinstance(each, Tensor) else each for each in args),
        **{key: each.to(device) if isinstance(each, Tensor) else each for key, each in named.items()},
    )


def _arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[object, ...], Mapping[str, object]]:
    """Return inputs as arguments by position and by keyword."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if len(inputs) == 1:
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        if not takes_any and next(iter(inputs)) not in parameters:
            return tuple(inputs.values()), {}
    return (), inputs


def _mismatch(model: nn.Module, inputs: Inputs) -> str | None:
    """Return why the model's forward cannot be called with these arguments, in words; None if it can."""
    args, named = _arguments(model, inputs)
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


def _wrong_dtypes(model: nn.Module, inputs: Inputs, error: RuntimeError) -> str | None:
    """Return which dtypes of weights and inputs do not go together, in words; None if that is not what is wrong."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return (
            f"The model has parameters on the meta device, where they have no values, and cannot run: {error}. "
            f"Load its weights first."
        )
    floats = sorted({str(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()})
    if not floats or re.search(r"\b(d?type|not implemented for)\b", str(error)) is None:
        return None
    given = tensors_of(inputs)
    has = f"The model has {' and '.join(floats)} weights and refused inputs of"
    integers = sorted({str(item.dtype) for item in given if not item.is_floating_point() and not item.is_complex()})
    if integers:
        return (
            f"{has} {' and '.join(integers)}: {error}. If these are images, scale them first, as in training: "
            f"`images.float() / 255`, then normalise."
        )
    others = sorted({str(item.dtype) for item in given if item.is_floating_point()} - set(floats))
    if others:
        return (
            f"{has} {' and '.join(others)}: {error}. Let the loader give inputs in the precision of the first layers, "
            f"`inputs.to({floats[0]})`, or take the model in that of the inputs: `model.to({others[0]})`."
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of Python says that memory ran out, on whatever device.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(OSError())
        (True, False)

    """
    if isinstance(error, InsufficientMemoryError):  # has said so already
        return False
    is_plain = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_plain or (isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None)


def sole_input(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return what a layer was called with: the first by position, else the one tensor among the keywords.

    Raises:
        HeadNotFoundError: If there is no such tensor, or more than one.

    Example:
        >>> import torch
        >>> sole_input((), {"x": torch.ones(2), "scale": None})
        tensor([1., 1.])

    """
    if args:
        return args[0]
    tensors = [kwargs["input"]] if "input" in kwargs else [each for each in kwargs.values() if isinstance(each, Tensor)]
    if len(tensors) != 1:
        raise HeadNotFoundError(
            f"A linear layer of the model was called with {len(tensors)} tensors, all by keyword "
            f"({', '.join(kwargs) or 'none'}): which of them is its input cannot be told. Give it its input by "
            f"position, `layer(features)`, or name it `input`.",
        )
    return tensors[0]


def plain_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor of which each rank holds a part (`DTensor`), and any other as it is."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def logits_of(output: object, selector: LogitsSelector | None = None) -> Tensor | None:
    """Return the logits in a model's output: the tensor itself, its `.logits` or its ``["logits"]``; None if none.

    Args:
        output: What the model's forward returned.
        selector: Where the logits are: index in a tuple or list, key of a mapping or name of an attribute, or a
            function of the output; None for the three places above.

    Returns:
        The logits; never None where a selector is given.

    Raises:
        OptionError: If there is nothing where `selector` says.
        InputTypeError: If `selector` is of another kind, or what it leads to is no tensor.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(1, 2)})
        tensor([[0., 0.]])
        >>> logits_of((torch.zeros(1, 2), torch.zeros(1, 2))) is None
        True
        >>> logits_of((torch.zeros(1), torch.ones(1, 2)), 1)
        tensor([[1., 1.]])

    """
    if selector is None:
        if isinstance(output, Tensor):
            return output
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        return found if isinstance(found, Tensor) else None
    if isinstance(selector, bool) or not (isinstance(selector, int | str) or callable(selector)):
        raise InputTypeError(
            f"`logits` must be an index, a key or attribute, or a function of the model's output, got "
            f"{type(selector).__name__}.",
        )
    found = _selected(output, selector) if isinstance(selector, int | str) else selector(output)
    if not isinstance(found, Tensor):
        what = f"a function that returns {_kind(found)}" if callable(selector) else f"{selector!r}, {_kind(found)}"
        raise InputTypeError(
            f"`logits` must lead to a tensor of shape (batch, classes), got {what}. The model's output is "
            f"{_described(output)}.",
        )
    return found


def no_logits_message(output: object) -> str:
    """Return what to say of an output that `logits_of` finds no logits in."""
    parts = [(place, part) for place, part in _parts(output) if isinstance(part, Tensor)]
    likely = [place for place, part in parts if part.ndim == 2 and part.is_floating_point() and part.shape[1] > 1]
    example = next(iter(likely), None)
    hint = "`logits=lambda output: ...`" if example is None else f"`logits={_quoted(example)}`, say"
    return (
        f"The model's output is neither a tensor nor holds `.logits`: it is {_described(output)}. Say where in it the "
        f"logits are: {hint}."
    )


def _selected(output: object, selector: int | str) -> object:
    """Return what is at an index, key or attribute of the output."""
    if isinstance(output, Tensor):
        raise OptionError(
            f"`logits` = {selector!r} picks from a model's output of several parts, but this model's is a single "
            f"tensor of shape {tuple(output.shape)}: leave it out.",
        )
    if isinstance(selector, int) and isinstance(output, tuple | list):
        if not -len(output) <= selector < len(output):
            raise OptionError(
                f"`logits` = {selector} is out of range: the model's output is {_described(output)}.",
            )
        found: object = output[selector]
        return found
    if isinstance(output, Mapping) and selector in output:
        return output[selector]
    if isinstance(selector, str) and hasattr(output, selector):
        return getattr(output, selector)
    kind = "key or attribute" if isinstance(selector, str) else "index"
    raise OptionError(f"`logits` = {selector!r} is no {kind} of the model's output, which is {_described(output)}.")


def _parts(output: object) -> Iterator[tuple[int | str, object]]:
    """Return the parts of an output with their index, key or attribute."""
    if isinstance(output, Mapping):
        yield from ((key, part) for key, part in output.items() if isinstance(key, int | str))
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    else:
        yield from getattr(output, "__dict__", {}).items()


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return _kind(output)
    parts = list(_parts(output))
    if not parts and not isinstance(output, Mapping | tuple | list):
        return _kind(output)
    lines = ", ".join(f"{_quoted(place)}: {_kind(part)}" for place, part in parts[:_SHOWN])
    return f"a {type(output).__name__} ({lines}{', ...' if len(parts) > _SHOWN else ''})"


def _kind(part: object) -> str:
    return f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"


def _quoted(place: int | str) -> str:
    return f'"{place}"' if isinstance(place, str) else str(place)

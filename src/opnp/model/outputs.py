"""What comes out of a model: where in it the logits are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from opnp.errors import InputTypeError, OptionError

__all__ = ["LogitsSelector", "logits_of", "no_logits_message"]

LogitsSelector = int | str | Callable[[Any], Tensor]
"""Where the logits are: index in a tuple, key or attribute, or a function from the model's output to the logits."""

_SHOWN = 12


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

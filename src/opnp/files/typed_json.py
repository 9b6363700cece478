"""Values out of JSON as the types say they must be: a file that somebody else wrote is believed in nothing."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union

__all__ = ["Share", "typed_value"]

Share = Annotated[float, (0.0, 1.0)]
"""A number in [0, 1]."""

_Value = TypeVar("_Value")
_LARGEST = 2**63
_LARGEST_FLOAT = 1e150
"""Far beyond any figure, and far enough from infinity for the sums and squares that are taken of it."""
_SHOWN = 60


def typed_value(kind: type[_Value], values: object, *, name: str = "it") -> _Value:
    """Return JSON values as a value of a type, every part of it checked.

    Args:
        kind: A data class, whose fields are annotated; what they may be: data classes, ``float`` (whole numbers too),
            ``int`` (of 64 bits), ``str``, ``bool``, ``None``, ``object`` (anything), unions and literals of these,
            ``tuple[X, ...]``, ``tuple[X, Y]`` and ``Mapping[str, X]``, and `Share`. Or one of these types itself.
        values: What JSON holds.
        name: What they are called in messages.

    Raises:
        TypeError: If a part is of another type, a field is missing, or there is one that does not belong there.
        ValueError: If a literal or the length of a tuple is another, or a number too large.

    Example:
        >>> typed_value(tuple[int, ...], [1, 2])
        (1, 2)
        >>> typed_value(tuple[int, ...], [1, "2"])
        Traceback (most recent call last):
            ...
        TypeError: it[1] must be a whole number, got '2'

    """
    found: _Value = _of_type(kind, values, name)
    return found


def _of_type(kind: Any, values: object, name: str) -> Any:  # noqa: ANN401, PLR0911  # any type; one return for each
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is object:
        return values
    if origin is Annotated:
        return _bounded(_of_type(inner[0], values, name), inner[1], name)
    if is_dataclass(kind):
        return _record(kind, values, name)
    if origin is Literal:
        return _one_of(inner, values, name)
    if origin in (Union, types.UnionType):
        return _of_union(inner, values, name)
    if origin is tuple:
        items = _required(values, list, name, "a list")
        if inner[-1] is Ellipsis:
            return tuple(_of_type(inner[0], item, f"{name}[{place}]") for place, item in enumerate(items))
        if len(items) != len(inner):
            message = f"{name} must have {len(inner)} values, got {len(items)}"
            raise ValueError(message)
        pairs = zip(inner, items, strict=True)
        return tuple(_of_type(each, item, f"{name}[{place}]") for place, (each, item) in enumerate(pairs))
    if origin is not None and issubclass(origin, Mapping):
        named = _required(values, dict, name, "names with values")
        return {key: _of_type(inner[1], item, f"{name}.{key}") for key, item in named.items()}
    return _scalar(kind, values, name)


def _bounded(value: Any, bounds: tuple[float, float], name: str) -> object:  # noqa: ANN401  # a number
    if not bounds[0] <= value <= bounds[1]:
        message = f"{name} must lie in {bounds[0]:g} to {bounds[1]:g}, got {_short(value)}"
        raise ValueError(message)
    return value


def _record(kind: Any, values: object, name: str) -> Any:  # noqa: ANN401  # any data class
    named = _required(values, dict, name, "names with values")
    hints = _hints(kind)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    for problem, names in (("lacks", [each for each in needed if each not in named]), ("has no", named.keys() - hints)):
        if names:
            message = f"{name} {problem} {_short(min(names))}"
            raise TypeError(message)
    return kind(**{key: _of_type(hints[key], item, f"{name}.{key}") for key, item in named.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in fields(kind)}


def _one_of(allowed: tuple[object, ...], values: object, name: str) -> object:
    if not isinstance(values, str) or values not in allowed:
        message = f"{name} must be one of {', '.join(map(repr, allowed))}, got {_short(values)}"
        raise ValueError(message)
    return values


def _of_union(kinds: tuple[Any, ...], values: object, name: str) -> object:
    """Return a value of the first type that it is of; None is told first, for the message of the others to count."""
    if values is None and type(None) in kinds:
        return None
    others = [each for each in kinds if each is not type(None)]
    for each in others[:-1]:
        try:
            return _of_type(each, values, name)
        except (TypeError, ValueError):
            continue
    return _of_type(others[-1], values, name)


def _scalar(kind: Any, values: object, name: str) -> object:  # noqa: ANN401  # any type
    titles = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    title = titles[kind]
    allowed = (int, float) if kind is float else kind
    if isinstance(values, bool) and kind is not bool:
        allowed = ()
    _required(values, allowed, name, title)
    if isinstance(values, int) and abs(values) >= _LARGEST:
        message = f"{name} must be a number of 64 bits, got a larger one"
        raise ValueError(message)
    if isinstance(values, float) and abs(values) > _LARGEST_FLOAT:
        message = f"{name} must be a number of at most {_LARGEST_FLOAT:g}, got {values!r}"
        raise ValueError(message)
    return values


def _required(values: object, kind: Any, name: str, title: str) -> Any:  # noqa: ANN401  # any type
    if not isinstance(values, kind):
        message = f"{name} must be {title}, got {_short(values)}"
        raise TypeError(message)
    return values


def _short(value: object) -> str:
    """Return a value in words that are short, whatever it is."""
    if isinstance(value, dict | list):
        return "names with values" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""JSON that came from a file, read strictly: nothing in it is dropped, rounded to infinity or taken twice."""

import json
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["json_values"]

_DEEPEST = 100


def json_values(text: str) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Return what JSON holds; its numbers are finite, its names unique, its texts Unicode.

    Raises:
        ValueError: If it is no JSON, holds NaN or an infinite number, a name twice or half a character, or is nested
            too deeply to be read.

    Example:
        >>> json_values("[0.5]")
        [0.5]

    """
    try:
        values = json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_with_unique_names)
        is_deep = _is_deeper(values, _DEEPEST)
    except RecursionError:
        is_deep = True
    if is_deep:
        message = "it is nested too deeply"
        raise ValueError(message)
    if "\\u" in text:  # half of a pair of surrogates can be written no other way
        json.dumps(values, ensure_ascii=False).encode()
    return values


def _is_deeper(values: object, levels: int) -> bool:
    """Return whether lists and names lie within each other deeper than so many levels."""
    level = [values]
    for _ in range(levels):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return False
    return True


def _items(values: dict[str, object] | list[object]) -> Iterable[object]:
    return values.values() if isinstance(values, dict) else values


def _refused(word: str) -> float:
    message = f"it holds {word}, and every number must be finite"
    raise ValueError(message)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            message = f"it holds {name!r} twice"
            raise ValueError(message)
        values[name] = value
    return values

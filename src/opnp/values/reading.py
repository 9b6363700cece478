"""JSON that came from a file, read strictly, and the values and records that are made of it.

Nothing in a file is believed: no name is taken twice, no number is infinite, no part is of another type than declared.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec

from opnp.errors import DataFileError

__all__ = ["LARGEST", "Record", "Share", "Value", "json_values", "one_value"]

_Shared = TypeVar("_Shared")

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
"""A number in [0, 1]."""

_DEEPEST = 100
LARGEST = 1e150
"""Far beyond any figure, and far enough from infinity for the sums and squares that are taken of it."""
_LARGEST_WHOLE = 2**63


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values with names and types that stay as they are; `msgspec.convert` makes one of JSON, and checks every part."""


class Record(Value, frozen=True):
    """A value with a file of its own: its version stands in the file, and equal records give equal text."""

    record_version: ClassVar[int]
    """The version that is written and read."""
    subject: ClassVar[str]
    """What it is a record of, for messages."""
    remedy: ClassVar[str] = ""
    """What to do about another version, for the message."""
    indent: ClassVar[int] = 1

    def to_json(self) -> str:
        """Return the record as JSON, keys sorted, numbers in full: equal records give equal text.

        Raises:
            ValueError: If a number is NaN or infinite.

        """
        values = {"record_version": self.record_version, **msgspec.to_builtins(self)}
        return json.dumps(values, indent=self.indent, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            DataFileError: If it is none, or of another version.

        """
        try:
            fields = json_values(text)
            found = fields.pop("record_version")
            if found == cls.record_version:
                return msgspec.convert(fields, cls)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"This is no record of {cls.subject} ({type(error).__name__}: {error}).") from error
        reads = f"this opnp reads version {cls.record_version}{cls.remedy}"
        raise DataFileError(f"This record has version {found!r}, and {reads}.")


def one_value(values: Iterable[_Shared], *, what: str) -> _Shared:
    """Return the value that records have in common.

    Args:
        values: One of each record, of at least one.
        what: What it is, for the message.

    Raises:
        DataFileError: If they differ.

    Example:
        >>> one_value([0, 0], what="seed")
        0

    """
    first, *others = values
    different = next((each for each in others if each != first), first)
    if different != first:
        raise DataFileError(f"Records of one folder must have the same {what}, got {first!r} and {different!r}.")
    return first


def json_values(text: str) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Return what JSON holds; its names are unique, its texts Unicode, its numbers of 64 bits and at most 1e150.

    Raises:
        ValueError: If it is no JSON, holds NaN, a number that is too large, a name twice or half a character, or is
            nested too deeply to be read.

    Example:
        >>> json_values("[0.5]")
        [0.5]

    """
    try:
        values = json.loads(
            text, parse_constant=_refused, parse_float=_float, parse_int=_whole, object_pairs_hook=_with_unique_names
        )
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
    level: list[object] = [values]
    for _ in range(levels):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return False
    return True


def _items(values: dict[str, object] | list[object]) -> Iterable[object]:
    return values.values() if isinstance(values, dict) else values


def _refused(word: str) -> float:
    message = f"it holds {word[:40]}, and every number must be finite and at most {LARGEST:g}"
    raise ValueError(message)


def _float(digits: str) -> float:
    value = float(digits)
    return value if abs(value) <= LARGEST else _refused(digits)


def _whole(digits: str) -> int:
    value = int(digits)
    if abs(value) >= _LARGEST_WHOLE:
        message = "it holds a whole number of more than 64 bits"
        raise ValueError(message)
    return value


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            message = f"it holds {name!r} twice"
            raise ValueError(message)
        values[name] = value
    return values

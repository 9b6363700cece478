"""Records as JSON with their version: equal records give equal text. Standard library only."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from opnp.errors import DataFileError

__all__ = ["json_values", "record_of", "record_text"]

_Record = TypeVar("_Record")


def record_text(record: Any, *, version: int) -> str:  # noqa: ANN401  # any data class
    """Return a record as JSON, keys sorted, numbers in full.

    Raises:
        ValueError: If a number is NaN or infinite.

    """
    return json.dumps({"record_version": version, **asdict(record)}, indent=1, sort_keys=True, allow_nan=False)


def json_values(text: str) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Return what JSON holds; its numbers are finite.

    Raises:
        ValueError: If it is no JSON, holds NaN or an infinite number, or is nested too deeply to be read.

    Example:
        >>> json_values("[0.5]")
        [0.5]

    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        message = "it is nested too deeply"
        raise ValueError(message) from None


def _refused(word: str) -> float:
    message = f"it holds {word}, and every number must be finite"
    raise ValueError(message)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)


def record_of(
    text: str, made_of: Callable[[Mapping[str, Any]], _Record], *, version: int, kind: str, again: str = ""
) -> _Record:
    """Return the record that `record_text` wrote.

    Args:
        text: The JSON.
        made_of: Makes the record of its values without the version.
        version: The version that is read.
        kind: What it is a record of, for messages.
        again: What to do about another version, for the message.

    Raises:
        DataFileError: If it is no such record, or of another version.

    Example:
        >>> record_of('{"record_version": 2, "a": 1}', dict, version=2, kind="a fit")
        {'a': 1}

    """
    try:
        fields = json_values(text)
        found = fields.pop("record_version")
        if found == version:
            return made_of(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFileError(f"This is no record of {kind} ({type(error).__name__}: {error}).") from error
    raise DataFileError(f"This record has version {found!r}, and this opnp reads version {version}{again}.")

"""Records as JSON with their version: equal records give equal text. Standard library only."""

import json
from dataclasses import asdict
from typing import Any, TypeVar

from opnp.errors import DataFileError
from opnp.files.json_text import json_values
from opnp.files.typed_json import typed_value

__all__ = ["record_of", "record_text"]

_Record = TypeVar("_Record")


def record_text(record: Any, *, version: int) -> str:  # noqa: ANN401  # any data class
    """Return a record as JSON, keys sorted, numbers in full.

    Raises:
        ValueError: If a number is NaN or infinite.

    """
    return json.dumps({"record_version": version, **asdict(record)}, indent=1, sort_keys=True, allow_nan=False)


def record_of(text: str, kind: type[_Record], *, version: int, title: str, again: str = "") -> _Record:
    """Return the record that `record_text` wrote, every part of it of the type that it must have.

    Args:
        text: The JSON.
        kind: The record's data class.
        version: The version that is read.
        title: What it is a record of, for messages.
        again: What to do about another version, for the message.

    Raises:
        DataFileError: If it is no such record, or of another version.

    Example:
        >>> from opnp.bench.bench_record import DataSource
        >>> record_of('{"record_version": 2, "samples": 1, "sha256": ""}', DataSource, version=2, title="a file")
        DataSource(samples=1, sha256='')

    """
    try:
        fields = json_values(text)
        found = fields.pop("record_version")
        if found == version:
            return typed_value(kind, fields, name="the record")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFileError(f"This is no record of {title} ({type(error).__name__}: {error}).") from error
    raise DataFileError(f"This record has version {found!r}, and this opnp reads version {version}{again}.")

"""The first line of a .csv file, which may name its columns."""

import csv
from collections.abc import Sequence
from pathlib import Path

from opnp.errors import DataFileError

__all__ = ["LABEL_COLUMNS", "column_names", "csv_header"]

LABEL_COLUMNS = ("label", "labels")
"""Names of the column of classes."""

_ONCE = ("path", "text", *LABEL_COLUMNS)


def column_names(path: Path, fields: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns without blanks around them, in small letters.

    Args:
        path: The file, for the message.
        fields: The names as they stand there.

    Raises:
        DataFileError: If two columns that are read have the same name.

    Example:
        >>> column_names(Path("list.csv"), ["Path", " label"])
        ('path', 'label')

    """
    names = tuple(field.strip().casefold() for field in fields)
    double = next((name for name in _ONCE if names.count(name) > 1), None)
    if double is not None:
        raise DataFileError(f"{path} has {names.count(double)} columns called `{double}`: one can be read.")
    return names


def csv_header(path: Path) -> tuple[str, ...]:
    """Return the first line of a .csv file as names of columns, which it may or may not be.

    Raises:
        DataFileError: If it cannot be read.

    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            fields = next((row for row in csv.reader(file) if row), [])
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataFileError(f"{path} is no readable .csv file ({error}).") from error
    return tuple(field.strip().casefold() for field in fields)

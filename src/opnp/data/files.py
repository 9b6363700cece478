"""What files say of samples: their names, the names of their columns, their classes, and digests of it all."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from opnp.errors import DataFileError

__all__ = [
    "LABEL_COLUMNS",
    "Names",
    "class_index",
    "class_labels",
    "column_names",
    "file_digest",
    "printable_name",
    "readable_digest",
    "shown_text",
]

LABEL_COLUMNS = ("label", "labels")
"""Names of the column of classes."""

_READ_COLUMNS = ("path", "text", *LABEL_COLUMNS)
_INTEGER = re.compile(r"-?[0-9]+")
_LARGEST = 2**63 - 1
_DIGITS = 1000
_SHOWN = 160


@dataclass(frozen=True, eq=False, slots=True)
class Names(Sequence[str]):
    """Names that are made when they are asked for.

    Attributes:
        length: How many there are.
        name: The name of a row.

    Example:
        >>> names = Names(3, "row {}".format)
        >>> len(names), names[-1], list(names[:2])
        (3, 'row 2', ['row 0', 'row 1'])

    """

    length: int
    name: Callable[[int], str]

    def __len__(self) -> int:
        """Return their number."""
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return one name, or some."""
        rows = range(self.length)[index]
        return self.name(rows) if isinstance(rows, int) else [self.name(row) for row in rows]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, or an empty text for a file that cannot be read."""
    try:
        return file_digest(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have, with a null character
        return ""


def printable_name(name: str) -> str:
    r"""Return a name as it is, or, where it is no UTF-8, with escapes for the bytes that are none.

    Example:
        >>> print(printable_name("große.png"), printable_name("\udcff.png"))
        große.png \xff.png

    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown_text(text: str) -> str:
    r"""Return a text of any content for a message: with escapes for what steers a terminal, and cut where it is long.

    Example:
        >>> print(shown_text("große.png"), shown_text("a\x1b[31m\nb"), len(shown_text("x" * 10**6)))
        große.png a\x1b[31m\nb 163

    """
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[: _SHOWN + 1])
    return shown if len(text) <= _SHOWN else f"{shown[:_SHOWN]}..."


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
    double = next((name for name in _READ_COLUMNS if names.count(name) > 1), None)
    if double is not None:
        raise DataFileError(f"{path} has {names.count(double)} columns called `{double}`: one can be read.")
    return names


def class_labels(given: Sequence[object], *, path: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Return labels as class indices, and the names that were numbered in sorted order, each None if there are none.

    Args:
        given: One label a sample: integers or texts of them are the classes themselves, other texts are names; None and
            empty texts are missing.
        path: Where they come from, for the message.

    Raises:
        DataFileError: If some are missing and others not, one is neither integer nor text, some are numbers and some
            names, or a number needs more than 64 bits.

    Example:
        >>> class_labels(["7", 0], path=Path("list.csv"))
        ((7, 0), None)
        >>> class_labels(["dog", "cat", "dog"], path=Path("list.csv"))
        ((1, 0, 1), ('cat', 'dog'))
        >>> class_labels([None, ""], path=Path("list.csv"))
        (None, None)

    """
    missing = sum(label is None or label == "" for label in given)
    if missing == len(given):
        return None, None
    if missing:
        raise DataFileError(f"{path}: {missing} of {len(given)} labels are missing: give all of them, or none.")
    wrong = next((label for label in given if isinstance(label, bool) or not isinstance(label, int | str)), None)
    if wrong is not None:
        raise DataFileError(f"{path}: labels must be integers or names of classes, got {shown_text(repr(wrong))}.")
    is_number = [isinstance(label, int) or _INTEGER.fullmatch(str(label)) is not None for label in given]
    if all(is_number):
        return tuple(class_index(label, path=path) for label in given), None
    if any(is_number):
        number, name = (shown_text(repr(given[is_number.index(wanted)])) for wanted in (True, False))
        raise DataFileError(
            f"{path}: labels must be numbers of classes or names of them, got both, such as {number} and {name}. "
            f"Where the first line names the columns, call them `path` (or `text`) and `label`.",
        )
    names = tuple(sorted({str(label) for label in given}))
    number_of = {name: number for number, name in enumerate(names)}
    return tuple(number_of[str(label)] for label in given), names


def class_index(label: object, *, path: Path) -> int:
    """Return an integer, or a text of digits, as a class index of 64 bits.

    Raises:
        DataFileError: If it is larger.

    Example:
        >>> class_index("007", path=Path("list.csv"))
        7

    """
    digits = str(label)
    if len(digits) > _DIGITS or abs(int(digits)) > _LARGEST:  # Python refuses to read very long numbers
        raise DataFileError(f"{path}: labels must be numbers of classes, below 2^63, got {shown_text(digits)}.")
    return int(digits)

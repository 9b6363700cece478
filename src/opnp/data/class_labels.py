"""Labels as files hold them, numbers or names, as class indices."""

import re
from collections.abc import Sequence
from pathlib import Path

from opnp.errors import DataFileError

__all__ = ["class_index", "class_labels"]

_INTEGER = re.compile(r"-?[0-9]+")
_LARGEST = 2**63 - 1
_DIGITS = 1000
_SHOWN = 30


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
        raise DataFileError(f"{path}: labels must be integers or names of classes, got {_shown(wrong)}.")
    is_number = [isinstance(label, int) or _INTEGER.fullmatch(str(label)) is not None for label in given]
    if all(is_number):
        return tuple(class_index(label, path=path) for label in given), None
    if any(is_number):
        number, name = (given[is_number.index(wanted)] for wanted in (True, False))
        raise DataFileError(
            f"{path}: labels must be numbers of classes or names of them, got both, such as {_shown(number)} and "
            f"{_shown(name)}. Where the first line names the columns, call them `path` (or `text`) and `label`.",
        )
    texts = [str(label) for label in given]
    names = tuple(sorted(set(texts)))
    number_of = {name: number for number, name in enumerate(names)}
    return tuple(number_of[text] for text in texts), names


def class_index(label: object, *, path: Path) -> int:
    """Return an integer, or a text of digits, as a class index of 64 bits.

    Raises:
        DataFileError: If it is larger.

    Example:
        >>> class_index("007", path=Path("list.csv"))
        7

    """
    is_short = isinstance(label, int) or len(str(label)) <= _DIGITS  # Python refuses to read very long numbers
    number = int(label) if is_short and isinstance(label, int | str) else None
    if number is None or not -_LARGEST <= number <= _LARGEST:
        raise DataFileError(f"{path}: labels must be numbers of classes, below 2^63, got {_shown(label)}.")
    return number


def _shown(label: object) -> str:
    """Return a label for a message, cut where it is long."""
    text = hex(label) if isinstance(label, int) and abs(label) > 10**_DIGITS else repr(label)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Labels as files hold them, numbers or names, as class indices."""

import re
from collections.abc import Sequence
from pathlib import Path

from opnp.errors import DataFileError

__all__ = ["class_labels"]

_INTEGER = re.compile(r"-?[0-9]+")
_LARGEST = 2**63 - 1


def class_labels(given: Sequence[object], *, path: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Return labels as class indices, and the names that were numbered in sorted order, each None if there are none.

    Args:
        given: One label a sample: integers or texts of them are the classes themselves, other texts are names; None and
            empty texts are missing.
        path: Where they come from, for the message.

    Raises:
        DataFileError: If some are missing and others not, or one is neither integer nor text.

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
        raise DataFileError(f"{path}: labels must be integers or names of classes, got {wrong!r}.")
    texts = [str(label) for label in given]
    if all(_INTEGER.fullmatch(text) for text in texts):
        numbers = tuple(int(text) for text in texts)
        if max(map(abs, numbers)) > _LARGEST:
            raise DataFileError(f"{path}: labels must be numbers of classes, got {max(numbers, key=abs)}.")
        return numbers, None
    names = tuple(sorted(set(texts)))
    number_of = {name: number for number, name in enumerate(names)}
    return tuple(number_of[text] for text in texts), names

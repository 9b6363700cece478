"""Samples on disk, in a fixed order: the form that folders, lists, files and data sets have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from opnp.data.transform import SampleKind

__all__ = ["InputSource", "Names"]


class InputSource(Protocol):
    """Samples on disk, in a fixed order; they are read one by one, when they are asked for."""

    @property
    def path(self) -> Path:
        """Where they are."""

    @property
    def kind(self) -> SampleKind:
        """What they are."""

    @property
    def names(self) -> Sequence[str]:
        """What each is called: its path in the folder or as the list has it, else its row."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Their classes, or None."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where these gave them their numbers; else None."""

    def __len__(self) -> int:
        """Return how many there are."""

    def sample(self, index: int) -> Any:  # noqa: ANN401  # an image of Pillow or a text, as `kind` says
        """Return one: an image of Pillow, or a text.

        Raises:
            DataFileError: If it cannot be read; its text is the reason alone.

        """

    def digest(self) -> str:
        """Return the SHA-256 of them all."""


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

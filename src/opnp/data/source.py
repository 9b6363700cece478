"""Where rows of features come from, a range at a time: files on disk, tensors, or an object of the user's."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor

from opnp.errors import OptionError

__all__ = ["FeaturePart", "FeatureSource", "block_edges", "feature_part"]


@runtime_checkable
class FeatureSource(Protocol):
    """Rows of features, with labels or without, that are read a range at a time and never held as a whole."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Number of features of a row."""

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""

    @property
    def first_row(self) -> int:
        """Number of the first row in the data that this is a part of: 0 for a whole."""

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` (not included), shape ``(rows, features)``, and their labels or None."""

    def digest(self) -> str:
        """Return a text that another content would not have; asked for only where a checkpoint is kept."""


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """Rows `start` to `stop` (not included) of another source, itself a source.

    Attributes:
        whole: The other source.
        start: First row.
        stop: Row after the last.

    """

    whole: FeatureSource
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return self.whole.width

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""
        return self.whole.is_labelled

    @property
    def first_row(self) -> int:
        """Number of the first row in the data that this is a part of."""
        return self.whole.first_row + self.start

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` of this part."""
        return self.whole.read(self.start + start, self.start + stop)

    def digest(self) -> str:
        """Return the digest of the whole: the range is not in it."""
        return self.whole.digest()


def feature_part(source: FeatureSource, start: int, stop: int) -> FeaturePart:
    """Return rows `start` to `stop` (not included) of a source.

    Raises:
        OptionError: If there are no such rows.

    """
    if not 0 <= start <= stop <= source.rows:
        raise OptionError(f"A part must lie in rows 0 to {source.rows}, got {start} to {stop}.")
    return FeaturePart(source, start, stop)


def block_edges(rows: int, *, size: int, first_row: int = 0) -> list[tuple[int, int]]:
    """Return (start, stop) of the blocks that rows are read in, cut where the whole data would be cut.

    A part that begins in the middle of a block of the whole begins with the rest of that block, so that all other
    blocks are those that one pass over the whole would have.

    Args:
        rows: Number of rows.
        size: Rows of a block, at most.
        first_row: Number of the first row in the whole data.

    Returns:
        Pairs that cover 0 to `rows` in order.

    Raises:
        OptionError: If `size` is no positive integer.

    Example:
        >>> block_edges(10, size=4), block_edges(10, size=4, first_row=7)
        ([(0, 4), (4, 8), (8, 10)], [(0, 1), (1, 5), (5, 9), (9, 10)])

    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"`batch_size` must be a positive number of rows, got {size!r}.")
    cuts = [0, *range(size - first_row % size, rows, size), rows]
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop]

"""A sample of a stream that its content decides: the rows with the smallest hashes, whatever order they come in.

The hash of a row is a weighted sum of the bits of its float32 values, mixed, an integer in [0, 2^62). Which rows are
kept depends on the set of rows alone, so that parts of a stream can be sampled anywhere and merged. Copies of a row in
one block of the stream have hashes of their own, so that a row that is frequent is as frequent in the sample; only how
many of its copies are kept may then depend on how the stream is cut.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["GOLDEN", "KeptRows", "as_int64", "row_hashes", "shifted_right", "splitmix64"]

_EMPTY = (1 << 63) - 1
_MASK = (1 << 62) - 1
_ROWS = 1024
GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""


@dataclass(frozen=True, eq=False, slots=True)
class KeptRows:
    """At most `limit` rows of those seen so far, the ones with the smallest hashes.

    Attributes:
        hashes: Shape ``(limit,)``, int64; an empty place holds 2^63 - 1.
        rows: Shape ``(limit, features)``.

    Example:
        >>> import torch
        >>> kept, numbers = KeptRows.empty(2, features=1), torch.arange(5.0)[:, None]
        >>> displaced = kept.add_(numbers)
        >>> again = KeptRows.empty(2, features=1)
        >>> _ = again.add_(numbers.flip(0))
        >>> len(displaced), len(kept), torch.equal(kept.smallest(2), again.smallest(2))
        (3, 2, True)

    """

    hashes: Tensor
    rows: Tensor

    @classmethod
    def empty(
        cls, limit: int, *, features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Self:
        """Return a sample of no rows yet."""
        return cls(
            hashes=torch.full((limit,), _EMPTY, dtype=torch.int64, device=device),
            rows=torch.zeros(limit, features, dtype=dtype, device=device),
        )

    def __len__(self) -> int:
        """Return how many rows are kept."""
        return int((self.hashes != _EMPTY).sum())

    def add_(self, features: Tensor) -> Tensor:
        """Take rows in, and return those that are not kept: of these, and of those that they displace.

        Args:
            features: Shape ``(batch, features)``, any floating dtype.

        Returns:
            Rows, shape ``(rows, features)``, dtype of `features`, at least float32; their order is not defined.

        """
        features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
        return self._add(features, row_hashes(features))

    def merge_(self, other: Self) -> Tensor:
        """Take the rows of another sample in, and return those that are not kept, as `add_` does."""
        is_there = other.hashes != _EMPTY
        return self._add(other.rows[is_there], other.hashes[is_there])

    def _add(self, features: Tensor, hashes: Tensor) -> Tensor:
        entering = (hashes < self.hashes.max()).nonzero().flatten()
        if len(entering) == 0:
            return features
        limit = len(self.hashes)
        order = torch.cat([self.hashes, hashes[entering]]).argsort(stable=True)
        leaving = order[limit:]
        is_new_lost = leaving >= limit
        places = leaving[~is_new_lost]
        stays = torch.ones(len(entering), dtype=torch.bool, device=features.device)
        stays[leaving[is_new_lost] - limit] = False
        taken = entering[stays]
        is_passed = torch.ones(len(features), dtype=torch.bool, device=features.device)
        is_passed[taken] = False
        displaced = self.rows[places[self.hashes[places] != _EMPTY]]
        self.rows[places] = features[taken].to(self.rows.dtype)
        self.hashes[places] = hashes[taken]
        return torch.cat([features[is_passed], displaced.to(features.dtype)])

    def smallest(self, count: int) -> Tensor:
        """Return the kept rows with the `count` smallest hashes, in ascending order of them."""
        return self.rows[self.hashes.argsort(stable=True)[: min(count, len(self))]]

    def others(self, count: int) -> Tensor:
        """Return the kept rows other than the `smallest`, in ascending order of their hashes."""
        return self.rows[self.hashes.argsort(stable=True)[count : len(self)]]


def row_hashes(features: Tensor) -> Tensor:
    """Return the hash of each row, shape ``(batch,)``, int64 in [0, 2^62): by its float32 bits, and which copy it is.

    Args:
        features: Shape ``(batch, features)``, any floating dtype.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0]])
        >>> row_hashes(rows).unique().numel(), bool(row_hashes(rows[:1]) == row_hashes(rows[2:]))
        (3, True)

    """
    numbers = torch.arange(1, features.shape[1] + 1, dtype=torch.int64, device=features.device)
    factors = splitmix64(numbers * as_int64(GOLDEN)) | 1
    parts = [
        ((rows.float() + 0.0).contiguous().view(torch.int32).long() * factors).sum(1) for rows in features.split(_ROWS)
    ]
    contents = splitmix64(torch.cat(parts) + as_int64(_FIRST))  # not from 0, which rows of zeros would come to
    return splitmix64(contents + _copies(contents) * as_int64(GOLDEN)) & _MASK


def _copies(contents: Tensor) -> Tensor:
    """Return how many equal values stand before each value, shape ``(batch,)``, int64."""
    ordered, order = contents.sort(stable=True)
    place = torch.arange(len(ordered), device=ordered.device)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    before = place - torch.where(is_first, place, 0).cummax(0).values if len(ordered) else place
    return torch.empty_like(before).scatter_(0, order, before)


def splitmix64(values: Tensor) -> Tensor:
    """Return splitmix64's finaliser of 64-bit integers; products wrap, as they do there."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        values = (values ^ shifted_right(values, shift)) * as_int64(factor)
    return values ^ shifted_right(values, 31)


def shifted_right(values: Tensor, by: int) -> Tensor:
    """Return the values shifted right with zeros from the left: torch's own shift repeats the sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def as_int64(value: int) -> int:
    """Return an integer modulo 2^64 as the one that torch holds."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value

"""A sample of a stream that its content decides: the rows with the smallest hashes, whatever order they come in.

Which rows are kept depends on the set of rows alone, so that parts of a stream can be sampled anywhere and merged. The
hash of a row is an integer in [0, 2^62). Its leading half comes from a few projections of the row's direction, rounded
to a grid, so that nearly all rows keep their place when the same inputs go through a model in other batches, on another
device or in half precision. Its trailing half comes from the bits of the row, and decides between rows of one cell.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["KeptRows", "row_hashes"]

_EMPTY = (1 << 63) - 1
_HALF = (1 << 31) - 1
_PROJECTIONS = 4
_CELLS = 32
"""Cells of the grid to a projection of length 1: small beside the differences of rows, large beside their rounding."""
_ROWS = 1024
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
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
        if len(self.hashes) == 0:
            return features
        hashes = row_hashes(features)
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
    """Return the hash of each row, shape ``(batch,)``, int64 in [0, 2^62): equal for rows equal in float32.

    Args:
        features: Shape ``(batch, features)``, any floating dtype.

    Example:
        >>> import torch
        >>> hashes = row_hashes(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.001], [1.0, 0.0]]))
        >>> hashes.unique().numel(), (hashes >> 31).unique().numel()
        (3, 2)

    """
    return torch.cat([_cells(rows) << 31 | _contents(rows) for rows in features.split(_ROWS)])


def _cells(rows: Tensor) -> Tensor:
    """Return a number in [0, 2^31) for the cell of a grid that each row's direction falls in."""
    wide = rows.double()
    numbers = torch.arange(1, rows.shape[1] + 1, dtype=torch.int64, device=rows.device)
    offsets = [_signed(projection * _GOLDEN) for projection in range(_PROJECTIONS)]
    signs = torch.stack([1 - 2 * (_mixed(numbers + offset) & 1) for offset in offsets], 1).double()
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    places = (wide @ signs / length * _CELLS).nan_to_num(0.0).clamp(-_HALF, _HALF).floor().long()
    found = torch.full_like(places[:, 0], _EMPTY)  # from 0 zeros would come to 0: rows of zeros would be kept first
    for place in places.T:
        found = _mixed(found * _signed(_GOLDEN) + place)
    return found & _HALF


def _contents(rows: Tensor) -> Tensor:
    """Return a number in [0, 2^31) for the bits of each row in float32."""
    numbers = torch.arange(1, rows.shape[1] + 1, dtype=torch.int64, device=rows.device)
    factors = _mixed(numbers * _signed(_GOLDEN)) | 1
    bits = (rows.float() + 0.0).contiguous().view(torch.int32).long()
    return _mixed((bits * factors).sum(1)) & _HALF


def _mixed(values: Tensor) -> Tensor:
    """Return splitmix64's finaliser of 64-bit integers; products wrap, as they do there."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        values = (values ^ _shifted(values, shift)) * _signed(factor)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Return the values shifted right with zeros from the left: torch's own shift repeats the sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """Return an integer modulo 2^64 as the one that torch holds."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value

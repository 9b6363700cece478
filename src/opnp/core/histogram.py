"""Quantiles of a stream in constant memory: a histogram over the leading bits of float32, as an additive value.

The leading 21 bits of a float32 (sign, exponent, 12 bits of mantissa), read as an integer, order numbers as their
values do. Counting them needs one array of 2^21 integers however long the stream, is exact in any order and merges by
``+``. Values that float16 or bfloat16 can hold have a bin of their own, so their quantiles are exact order statistics;
those of other values are nearer zero by at most 2^-12 of the value (0.02 %), or by 2^-138 (3e-42) if that is more.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction
from opnp.errors import EmptyDataError

__all__ = ["ValueHistogram"]

_DROPPED_BITS = 11
_BINS = 1 << (32 - _DROPPED_BITS)
_SIGN_BIN = _BINS // 2


@dataclass(frozen=True, eq=False, slots=True)
class ValueHistogram:
    """Counts of finite values by the leading bits of their float32 form: a value that adds up.

    Attributes:
        counts: Count of each bin in ascending order of value, shape ``(2**21,)``, int64.

    Example:
        >>> import torch
        >>> part = ValueHistogram.from_values(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> (part + part).quantile(0.5)
        1.0

    """

    counts: Tensor

    @classmethod
    def zeros(cls, *, device: torch.device | str | None = None) -> Self:
        """Return the empty histogram, the neutral element of ``+``."""
        return cls(torch.zeros(_BINS, dtype=torch.int64, device=device))

    @classmethod
    def from_values(cls, values: Tensor) -> Self:
        """Return the counts of finite `values`, of any shape and floating dtype; whether they are is not checked."""
        return cls(torch.bincount(_bins(values), minlength=_BINS))

    def add_(self, values: Tensor) -> None:
        """Count further finite `values` in place: O(values), where ``+`` is O(bins). For a buffer of one's own."""
        index = _bins(values)
        if len(index) > _BINS // 8:
            self.counts.add_(torch.bincount(index, minlength=_BINS))
        else:
            self.counts.scatter_add_(0, index.long(), torch.ones_like(index, dtype=torch.int64))

    def __add__(self, other: object) -> "ValueHistogram":
        """Return the counts over both parts of the data."""
        if not isinstance(other, ValueHistogram):
            return NotImplemented
        return ValueHistogram(self.counts + other.counts)

    def quantile(self, fraction: float) -> float:
        """Return the k-th smallest value seen, k = max(1, ceil(fraction * n)), rounded towards zero to 13 bits.

        Args:
            fraction: In (0, 1), taken as the decimal it is written as.

        Returns:
            The quantile, in units of the values.

        Raises:
            OptionError: If `fraction` lies outside (0, 1).
            EmptyDataError: If nothing was counted.

        """
        share = Fraction(str(checked_fraction(fraction, name="fraction")))
        ascending = self.counts.cumsum(0)
        total = int(ascending[-1])
        if total == 0:
            raise EmptyDataError("No value was counted: the quantile of no data is undefined.")
        rank = torch.tensor(max(1, math.ceil(share * total)), device=ascending.device)
        index = int(torch.searchsorted(ascending, rank)) - _SIGN_BIN
        bits = index << _DROPPED_BITS if index >= 0 else ((-1 - index) << _DROPPED_BITS) - (1 << 31)
        return float(torch.tensor(bits, dtype=torch.int32, device="cpu").view(torch.float32))


def _bins(values: Tensor) -> Tensor:
    """Return the bin of each value, shape ``(values,)``, int32: the leading bits, those of negative values flipped."""
    bits = values.detach().float().contiguous().view(torch.int32).flatten() >> _DROPPED_BITS
    flipped = (bits >> 31).bitwise_and_(_SIGN_BIN - 1)
    return bits.bitwise_xor_(flipped).add_(_SIGN_BIN)

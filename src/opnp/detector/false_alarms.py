"""How often known inputs are flagged: in expectation, and how far a single calibration set may lie from that.

A new ID score exceeds the threshold, the k-th smallest of n calibration scores, with a probability that depends on the
calibration set. Where no two scores are equal it has the distribution Beta(r, n + 1 - r), r being the flagged rank
n + 1 - k; its mean r / (n + 1) is the share of known inputs flagged on average over calibration sets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from opnp.core.conformal import flagged_rank

__all__ = ["FalseAlarms"]

_STEPS = 40


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """The share of known inputs that a calibrated detector flags.

    Attributes:
        samples: Number n of calibration samples.
        rank: The flagged rank r.

    Example:
        >>> alarms = FalseAlarms.at(999, keep=0.95)
        >>> alarms.expected
        0.05
        >>> [round(bound, 4) for bound in alarms.range()]
        [0.0374, 0.0643]

    References:
        Vovk, "Conditional validity of inductive conformal predictors", Machine Learning 2013, for the distribution.

    """

    samples: int
    rank: int

    @classmethod
    def at(cls, samples: int, *, keep: float) -> Self:
        """Return the false alarms of a detector calibrated on so many samples.

        Raises:
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few samples for this `keep`.

        """
        return cls(samples=samples, rank=flagged_rank(samples, keep=keep))

    @property
    def expected(self) -> float:
        """Share of known inputs flagged, in expectation over calibration sets: r / (n + 1)."""
        return self.rank / (self.samples + 1)

    def range(self, *, share: float = 0.95) -> tuple[float, float]:
        """Return the bounds between which the share flagged lies for the central `share` of calibration sets."""
        counts = torch.arange(self.rank, self.samples + 1, dtype=torch.float64)
        others = self.samples - counts
        ways = math.lgamma(self.samples + 1) - torch.lgamma(counts + 1) - torch.lgamma(others + 1)

        def distribution(value: float) -> float:
            """Return P(Beta(r, n + 1 - r) <= value), which is P(Binomial(n, value) >= r)."""
            return float((ways + counts * math.log(value) + others * math.log1p(-value)).exp().sum())

        tail = (1 - share) / 2
        return _crossing(distribution, tail), _crossing(distribution, 1 - tail)


def _crossing(rising: Callable[[float], float], level: float) -> float:
    """Return where in (0, 1) a rising function comes to a level, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2

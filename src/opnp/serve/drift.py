"""The test behind the monitor: p-values in, evidence and an alarm out, in memory that does not grow."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from opnp.core.martingale import (
    BIN_EDGES,
    MartingaleState,
    alarm_threshold,
    bin_of_p_value,
    log_wealth,
)

__all__ = ["DriftSummary", "DriftTest"]

_PIECE = 8192
_SHOWN_BY = 2
"""Finer bins at both ends are joined for people: 0 to 0.05 and 0.95 to 1."""


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """What a monitor has to say, as JSON values.

    Attributes:
        samples: Samples of the stream so far.
        level: Probability of ever raising a false alarm, at most.
        alarm_at: Index of the sample, from 0, at which there was an alarm; None where there was none.
        log_wealth: Logarithm of the evidence now.
        peak_log_wealth: Logarithm of the greatest evidence so far.
        peak_at: Index of the sample at which it was reached; None before there was any above 1.
        p_value: The level at which there would just have been an alarm: valid at any time.
        small_share: Share of the online p-values of at most 0.05; 0.05 is expected of ID.
        edges: Edges of the histogram's bins.
        counts: Online p-values in each bin.
        expected: Those expected in each bin of ID.
        sentence: All this in words.

    """

    samples: int
    level: float
    alarm_at: int | None
    log_wealth: float
    peak_log_wealth: float
    peak_at: int | None
    p_value: float
    small_share: float | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    expected: tuple[float, ...]
    sentence: str

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return asdict(self)


class DriftTest:
    """A test martingale on p-values as they come, with an alarm that is false with a probability of at most `level`.

    Attributes:
        state: What the martingale knows of the past.
        counts: p-values in each of its bins.
        log_wealth: Logarithm of the evidence now, as `peak_log_wealth` and `peak_at` are of the greatest so far.
        alarm_at: Index of the sample, from 0, at which there was an alarm; None where there was none. It stays.

    Args:
        level: Probability of ever raising a false alarm, at most; in (0, 1).
        is_one_sided: Whether to bet on small p-values alone.

    Raises:
        OptionError: If `level` lies outside (0, 1).

    Example:
        >>> import torch
        >>> test = DriftTest(level=0.01)
        >>> _ = test.update(torch.full((30,), 0.004))
        >>> test.alarm_at
        3

    """

    def __init__(self, *, level: float = 0.01, is_one_sided: bool = False) -> None:
        """Start with a wealth of 1."""
        self.level = float(level)
        self.is_one_sided = is_one_sided
        self.threshold = alarm_threshold(level)
        self.state = MartingaleState.start()
        self.counts = torch.zeros(len(BIN_EDGES) - 1, dtype=torch.int64)
        self.log_wealth = 0.0
        self.peak_log_wealth = 0.0
        self.peak_at: int | None = None
        self.alarm_at: int | None = None

    def update(self, p_values: Tensor) -> Tensor:
        """Bet on further p-values, shape ``(batch,)``, and return the log wealth after each, float64.

        Raises:
            OptionError: If a p-value lies outside [0, 1].
            NonFiniteError: If one is NaN.

        """
        bins = bin_of_p_value(p_values)
        pieces = [self._piece(piece) for piece in p_values.split(_PIECE)]
        self.counts = self.counts + torch.bincount(bins, minlength=len(self.counts))
        return torch.cat(pieces)

    def summary(self) -> DriftSummary:
        """Return evidence, alarm and histogram as they are now."""
        samples = self.state.samples
        edges = (0.0, *BIN_EDGES[_SHOWN_BY:-_SHOWN_BY], 1.0)
        counts = self.counts.tolist()
        shown = [sum(counts[:_SHOWN_BY]), *counts[_SHOWN_BY:-_SHOWN_BY], sum(counts[-_SHOWN_BY:])]
        expected = [round(samples * (high - low), 6) for low, high in pairwise(edges)]
        return DriftSummary(
            samples=samples,
            level=self.level,
            alarm_at=self.alarm_at,
            log_wealth=self.log_wealth,
            peak_log_wealth=self.peak_log_wealth,
            peak_at=self.peak_at,
            p_value=math.exp(-self.peak_log_wealth),
            small_share=shown[0] / samples if samples else None,
            edges=edges,
            counts=tuple(shown),
            expected=tuple(expected),
            sentence=self._sentence(),
        )

    def _piece(self, p_values: Tensor) -> Tensor:
        start = self.state.samples
        wealth, self.state = log_wealth(p_values, self.state, is_one_sided=self.is_one_sided)
        if len(wealth) == 0:
            return wealth
        self.log_wealth = float(wealth[-1])
        highest, place = wealth.max(0)
        if float(highest) > self.peak_log_wealth:
            self.peak_log_wealth, self.peak_at = float(highest), start + int(place)
        above = (wealth >= self.threshold).nonzero()
        if self.alarm_at is None and len(above):
            self.alarm_at = start + int(above[0])
        return wealth

    def _sentence(self) -> str:
        samples = self.state.samples
        if samples == 0:
            return "No samples yet."
        promise = f"A stream like them ever raises an alarm with a probability of at most {self.level:g}."
        if self.alarm_at is not None:
            return (
                f"Alarm: the stream is no longer like the calibration samples, seen at sample {self.alarm_at + 1} of "
                f"{samples}. {promise}"
            )
        return (
            f"No alarm: {samples} samples give no sufficient evidence against the stream being like the calibration "
            f"samples. {promise}"
        )

"""A test martingale on independent uniform p-values: evidence that grows when they are not, at any time one looks.

A gambler starts with 1 and bets on each p-value before it is seen. A bet is a density f on (0, 1): the wealth is
multiplied by f(p). Where p-values are independent and uniform, no strategy makes the expected wealth grow, and by
Ville's inequality

    P(the wealth ever reaches 1 / level) <= level.

An alarm at that moment is therefore false with a probability of at most `level`, however long the stream is and however
often one looks. The strategy is a simple jumper: it bets nothing at first, and at a random moment, drawn before the
start, it jumps to one of four bets, each as likely, and stays there. The wealth is the mean over all these paths, and
so a martingale again. With the density g_k(p) = k p^(k - 1), which is large at small p-values, the bets are

- 0.88 + 0.12 g_0.3(p): a few very small p-values among ordinary ones, as far OOD inputs give;
- g_0.8(p): many p-values a little too small;
- g_0.8(1 - p): many p-values a little too large, as inputs give that are too ordinary;
- 1/2 + 2 min(p, 1 - p): p-values that pile up in the middle, as inputs give that are all alike.

Each density is averaged over the bins between `BIN_EDGES`. After t samples the share 1 / (1 + log(1 + t / 100)) has not
jumped yet. It falls so slowly that a change after a long quiet time is found nearly as soon as one at the start.

The simple jumper as published bets 1 + e (p - 1/2) with e of -1, 0 and 1, and jumps back and forth at a constant rate.
Linear bets hardly see a tenth of far OOD inputs, and a constant rate loses money in quiet times for ever:
`docs/how-to/monitoring.md` has the figures.

Source: Ville, *Etude critique de la notion de collectif*, 1939; Vovk, Nouretdinov and Gammerman, "Testing
Exchangeability On-Line", ICML 2003 (the bets g_k); Vovk et al., "Retrain or Not Retrain: Conformal Test Martingales for
Change-Point Detection", COPA 2021 (the simple jumper); Vovk, "Testing Randomness Online", Statistical Science 2021.
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction
from opnp.errors import NonFiniteError, OptionError

__all__ = [
    "BIN_EDGES",
    "DriftSummary",
    "DriftTest",
    "MartingaleState",
    "alarm_threshold",
    "bets",
    "bin_of_p_value",
    "log_wealth",
]

BIN_EDGES = (0.0, 0.01, *(number / 20 for number in range(1, 20)), 0.99, 1.0)
"""Edges of the bins that p-values are counted in; every bet is constant on each."""

_PILE_POWER = 0.3
_PILE_SHARE = 0.12
_POWER = 0.8
_PACE = 100
_ONE_SIDED = 2
"""How many of the bets, from the first on, fall with the p-value."""

_SHOWN_BY = 2
"""Finer bins at both ends are joined for people: 0 to 0.05 and 0.95 to 1."""


@dataclass(frozen=True, eq=False, slots=True)
class MartingaleState:
    """What a test martingale must know of the past: a value from which it goes on to the same bits.

    Attributes:
        samples: p-values seen.
        log_active: Logarithm of the wealth on each bet, shape ``(..., bets)``, float64.

    """

    samples: int
    log_active: Tensor

    @classmethod
    def start(cls, *streams: int, is_one_sided: bool = False) -> "MartingaleState":
        """Return the state before the first p-value, of one stream or of several, with these leading axes.

        Args:
            *streams: The leading axes.
            is_one_sided: Whether to bet on small p-values alone. Such wealth only falls if a p-value is made larger,
                so the promise holds for p-values that are never smaller than independent uniform ones.

        """
        width = _ONE_SIDED if is_one_sided else bets().shape[1]
        return cls(samples=0, log_active=torch.full((*streams, width), -math.inf, dtype=torch.float64, device="cpu"))


def alarm_threshold(level: float) -> float:
    """Return the log wealth at which there is an alarm: log(1 / level).

    Args:
        level: Probability of ever raising a false alarm, at most; in (0, 1).

    Raises:
        OptionError: If `level` lies outside (0, 1).

    Example:
        >>> round(alarm_threshold(0.01), 3)
        4.605

    """
    return -math.log(checked_fraction(level, name="level"))


def bin_of_p_value(p_values: Tensor) -> Tensor:
    """Return the bin between `BIN_EDGES` of each p-value, int64, of the same shape; the left edge belongs to the bin.

    Raises:
        OptionError: If a p-value lies outside [0, 1].
        NonFiniteError: If one is NaN.

    Example:
        >>> import torch
        >>> bin_of_p_value(torch.tensor([0.0, 0.01, 0.07, 1.0], dtype=torch.float64)).tolist()
        [0, 1, 2, 21]

    """
    if bool(p_values.isnan().any()):
        raise NonFiniteError(f"`p_values` holds {int(p_values.isnan().sum())} NaN.")
    if p_values.numel() and not 0 <= float(p_values.min()) <= float(p_values.max()) <= 1:
        raise OptionError(
            f"`p_values` must lie in [0, 1], got {float(p_values.min()):g} to {float(p_values.max()):g}.",
        )
    inner = torch.tensor(BIN_EDGES[1:-1], dtype=torch.float64, device=p_values.device)
    return torch.searchsorted(inner, p_values.double().contiguous(), side="right")


def bets() -> Tensor:
    """Return the bets: densities by bin, shape ``(bins, bets)``, float64.

    The mean of each over the bins, weighted by their widths, is 1. The first two fall with p.

    Example:
        >>> import torch
        >>> widths = torch.tensor(BIN_EDGES, dtype=torch.float64).diff()
        >>> torch.allclose(widths @ bets(), torch.ones(4, dtype=torch.float64))
        True

    """
    edges = torch.tensor(BIN_EDGES, dtype=torch.float64, device="cpu")
    piled, small = (edges.pow(power).diff() / edges.diff() for power in (_PILE_POWER, _POWER))
    middles = (edges[1:] + edges[:-1]) / 2
    alike = 0.5 + 2 * torch.minimum(middles, 1 - middles)
    return torch.stack([(1 - _PILE_SHARE) + _PILE_SHARE * piled, small, small.flip(0), alike], 1)


def log_wealth(p_values: Tensor, state: MartingaleState) -> tuple[Tensor, MartingaleState]:
    """Return the logarithm of the wealth after each p-value, and the state after the last.

    Args:
        p_values: p-values in [0, 1], in the order of the stream, shape ``(..., samples)``: several streams along the
            leading axes. Independent and uniform under the hypothesis that is tested.
        state: The state before them: `MartingaleState.start()`, or what an earlier call returned.

    Returns:
        Log wealth, shape ``(..., samples)``, float64, and the new state. Pieces of a stream give what the whole gives.

    Raises:
        OptionError: If a p-value lies outside [0, 1].
        NonFiniteError: If one is NaN.

    Example:
        >>> import torch
        >>> wealth, state = log_wealth(torch.full((20,), 0.004), MartingaleState.start())
        >>> bool(wealth[-1] > alarm_threshold(0.01)), state.samples
        (True, 20)

    References:
        Vovk et al., "Retrain or Not Retrain: Conformal Test Martingales for Change-Point Detection", COPA 2021.

    """
    active, samples = state.log_active, p_values.shape[-1]
    width = active.shape[-1]
    log_bets = bets()[:, :width].log()[bin_of_p_value(p_values)]
    waiting = [1 / (1 + math.log1p((state.samples + number) / _PACE)) for number in range(samples + 1)]
    shares = [(before - after) / width for before, after in pairwise(waiting)]
    jumping = torch.tensor([math.log(share) for share in shares], dtype=torch.float64, device="cpu")
    wealth = torch.empty(p_values.shape, dtype=torch.float64, device="cpu")
    money = active.new_empty(*active.shape[:-1], width + 1)
    for number in range(samples):  # shapes are those of one sample: vector instructions round alike in every piece
        active = torch.logaddexp(active, jumping[number]) + log_bets[..., number, :]
        money[..., :width] = active
        money[..., width] = math.log(waiting[number + 1])
        wealth[..., number] = torch.logsumexp(money, -1)
    return wealth, MartingaleState(samples=state.samples + samples, log_active=active)


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
        7

    """

    def __init__(self, *, level: float = 0.01, is_one_sided: bool = False) -> None:
        """Start with a wealth of 1."""
        self.level = float(level)
        self.threshold = alarm_threshold(level)
        self.state = MartingaleState.start(is_one_sided=is_one_sided)
        self.counts = torch.zeros(len(BIN_EDGES) - 1, dtype=torch.int64, device="cpu")
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
        start = self.state.samples
        wealth, self.state = log_wealth(p_values, self.state)
        if len(wealth) == 0:
            return wealth
        self.counts = self.counts + torch.bincount(bin_of_p_value(p_values), minlength=len(self.counts))
        self.log_wealth = float(wealth[-1])
        highest, place = wealth.max(0)
        if float(highest) > self.peak_log_wealth:
            self.peak_log_wealth, self.peak_at = float(highest), start + int(place)
        above = (wealth >= self.threshold).nonzero()
        if self.alarm_at is None and len(above):
            self.alarm_at = start + int(above[0])
        return wealth

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

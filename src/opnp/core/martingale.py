"""A test martingale on independent uniform p-values: evidence that grows when they are not, at any time one looks.

A gambler starts with 1 and bets on each p-value before it is seen. A bet is a density f on (0, 1): the wealth is
multiplied by f(p). Where p-values are independent and uniform, no strategy makes the expected wealth grow, and by
Ville's inequality

    P(the wealth ever reaches 1 / level) <= level.

An alarm at that moment is therefore false with a probability of at most `level`, however long the stream is and however
often one looks. The wealth here is divided among several strategies before the start, which is a strategy as well:

- small p-values pile up (OOD inputs): f = (1 - a) + a g, with g a mean of 1[p <= c] / c over c in 0.01, 0.05, 0.1, 0.3
  and a share a of 0.04, 0.12 or 0.4; three quarters of the wealth;
- large p-values pile up (inputs that are too ordinary): the same mirrored, a tenth;
- any other departure: f is the histogram of the last 256 to 511 p-values over tenths, a little flattened; the rest.

Each strategy keeps a part of its money aside and brings it into play bit by bit, so that a change after a long quiet
time is found as well: after t samples the share 1 / (1 + log(1 + t / 100)) is still aside. This is a weighted mean of
the martingales that begin at each moment, and so again a martingale. All is computed with logarithms.

Source: Ville, *Etude critique de la notion de collectif*, 1939; Vovk, Gammerman and Shafer, *Algorithmic Learning in a
Random World*, 2005, chapter 7; Vovk, "Testing Randomness Online", Statistical Science 2021; Shafer et al., "Test
Martingales, Bayes Factors and p-Values", Statistical Science 2011.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction
from opnp.errors import NonFiniteError, OptionError

__all__ = [
    "BIN_EDGES",
    "MartingaleState",
    "alarm_threshold",
    "bin_of_p_value",
    "bin_widths",
    "fixed_bets",
    "log_wealth",
]

BIN_EDGES = (0.0, 0.01, *(number / 20 for number in range(1, 20)), 0.99, 1.0)
"""Edges of the bins that p-values are counted in; every fixed bet is constant on each."""

_SHARES = (0.04, 0.12, 0.4)
_MIRRORED_SHARES = (0.1, 0.4)
_CUTS = (0.01, 0.05, 0.1, 0.3)
_WEIGHTS = (0.25, 0.25, 0.25, 0.05, 0.05, 0.15)
_ONE_SIDED_WEIGHTS = (1 / 3, 1 / 3, 1 / 3, 0.0, 0.0, 0.0)
_STRATEGIES = len(_WEIGHTS)
_PACE = 100
_WINDOW = 256
_TENTHS = 10
_FLATTENING = 5


@dataclass(frozen=True, eq=False, slots=True)
class MartingaleState:
    """What a test martingale must know of the past: a value from which it goes on to the same bits.

    Attributes:
        samples: p-values seen.
        log_active: Logarithm of what each strategy has in play, over its share, shape ``(..., strategies)``, float64.
        recent: Counts of p-values by tenths, in the last whole window and in the present one, shape ``(..., 2, 10)``.

    """

    samples: int
    log_active: Tensor
    recent: Tensor

    @classmethod
    def start(cls, *streams: int) -> "MartingaleState":
        """Return the state before the first p-value, of one stream or of several, with these leading axes."""
        active = torch.full((*streams, _STRATEGIES), -math.inf, dtype=torch.float64)
        return cls(samples=0, log_active=active, recent=torch.zeros(*streams, 2, _TENTHS, dtype=torch.int64))


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


def bin_widths() -> Tensor:
    """Return the widths of the bins, shape ``(bins,)``, float64: the shares of p-values expected in each."""
    return torch.tensor(BIN_EDGES, dtype=torch.float64).diff()


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
    inner = torch.tensor(BIN_EDGES[1:-1], dtype=torch.float64)
    return torch.searchsorted(inner, p_values.double().contiguous(), side="right")


def fixed_bets() -> Tensor:
    """Return the bets that do not depend on the past: densities f by bin, shape ``(bins, strategies)``, float64.

    The mean of each over the bins, weighted by their widths, is 1. The first three fall with p.

    Example:
        >>> import torch
        >>> torch.allclose(bin_widths() @ fixed_bets(), torch.ones(5, dtype=torch.float64))
        True

    """
    lower = torch.tensor(BIN_EDGES[:-1], dtype=torch.float64)
    steps = [(lower < cut).double() / cut for cut in _CUTS]
    piled = torch.stack(steps).mean(0)
    small = [(1 - share) + share * piled for share in _SHARES]
    large = [(1 - share) + share * piled.flip(0) for share in _MIRRORED_SHARES]
    return torch.stack(small + large, 1)


def log_wealth(
    p_values: Tensor, state: MartingaleState, *, is_one_sided: bool = False
) -> tuple[Tensor, MartingaleState]:
    """Return the logarithm of the wealth after each p-value, and the state after the last.

    Args:
        p_values: p-values in [0, 1], in the order of the stream, shape ``(..., samples)``: several streams along the
            leading axes. Independent and uniform under the hypothesis that is tested.
        state: The state before them: `MartingaleState.start()`, or what an earlier call returned.
        is_one_sided: Whether to bet on small p-values alone. Such wealth only falls if a p-value is made larger, so
            the promise holds for p-values that are never smaller than independent uniform ones.

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
        Vovk, "Testing Randomness Online", Statistical Science 2021.

    """
    bins, samples = bin_of_p_value(p_values), p_values.shape[-1]
    bets, recent = _log_bets(bins, state)
    aside = [_aside(state.samples + number) for number in range(samples + 1)]
    entering = torch.tensor([math.log(before - after) for before, after in pairwise(aside)], dtype=torch.float64)
    weights = torch.tensor(_ONE_SIDED_WEIGHTS if is_one_sided else _WEIGHTS, dtype=torch.float64).log()
    active, wealth = state.log_active, torch.empty(p_values.shape, dtype=torch.float64)
    money = torch.empty(*active.shape[:-1], _STRATEGIES + 1, dtype=torch.float64)
    for number in range(samples):  # shapes are those of one sample: vector instructions round alike in every piece
        active = torch.logaddexp(active, entering[number]) + bets[..., number, :]
        torch.add(active, weights, out=money[..., :-1])
        money[..., -1] = math.log(aside[number + 1])
        wealth[..., number] = torch.logsumexp(money, -1)
    return wealth, MartingaleState(samples=state.samples + samples, log_active=active, recent=recent)


def _aside(samples: int) -> float:
    """Return the share of the money that is not in play yet."""
    return 1 / (1 + math.log1p(samples / _PACE))


def _log_bets(bins: Tensor, state: MartingaleState) -> tuple[Tensor, Tensor]:
    """Return the logarithm of each strategy's bet, shape ``(..., samples, strategies)``, and the counts afterwards."""
    fixed, tenths = fixed_bets().log()[bins], _tenth_of_bin()[bins]
    plugged, recent, start = [], state.recent, 0
    while start < bins.shape[-1]:
        place = (state.samples + start) % _WINDOW
        if place == 0:
            recent = torch.stack([recent[..., 1, :], torch.zeros_like(recent[..., 1, :])], -2)
        block = tenths[..., start : start + _WINDOW - place]
        seen = torch.eye(_TENTHS, dtype=torch.int64)[block]
        before = recent.sum(-2)[..., None, :] + seen.cumsum(-2) - seen
        plugged.append(_log_histogram(before.gather(-1, block[..., None])[..., 0], before.sum(-1)))
        recent = torch.stack([recent[..., 0, :], recent[..., 1, :] + seen.sum(-2)], -2)
        start += block.shape[-1]
    histogram = torch.cat(plugged, -1) if plugged else torch.empty(bins.shape, dtype=torch.float64)
    return torch.cat([fixed, histogram[..., None]], -1), recent


def _log_histogram(count: Tensor, total: Tensor) -> Tensor:
    """Return log(10 (count + 5) / (total + 50)): the flattened density of a tenth, from counts before the bet."""
    table = _logarithms()
    return table[_TENTHS * (count + _FLATTENING)] - table[total + _TENTHS * _FLATTENING]


@cache
def _logarithms() -> Tensor:
    """Return the logarithms of integers: looked up, so that none depends on what is computed beside it."""
    highest = _TENTHS * (2 * _WINDOW + _FLATTENING)
    return torch.tensor([-math.inf, *map(math.log, range(1, highest + 1))], dtype=torch.float64)


def _tenth_of_bin() -> Tensor:
    lower = torch.tensor(BIN_EDGES[:-1], dtype=torch.float64)
    edges = torch.tensor([number / _TENTHS for number in range(1, _TENTHS)], dtype=torch.float64)
    return torch.searchsorted(edges, lower, side="right")

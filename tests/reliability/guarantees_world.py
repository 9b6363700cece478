"""Detectors of a few numbers, through the public interface, and the checks of theory that simulations must pass."""

import math
from collections.abc import Iterator
from functools import cache

import torch
from scipy import stats
from torch import Tensor

from opnp import OPNP, Ratios

__all__ = [
    "FALSE_FAILURES",
    "KINDS",
    "compositions",
    "most_alarms",
    "ordering_detector",
    "random_features",
    "require_beta_binomial",
    "small_detector",
]

FALSE_FAILURES = 1e-4
"""Probability with which a check by simulation fails though all is right, for each of its two statistics.

Seeds are fixed, so that a check that passes today passes tomorrow.
"""

WIDTH = 6
KINDS = ("paper", "fusion")


@cache
def small_detector(kind: str = "paper") -> OPNP:
    """Return a detector of random features: with a tenth of its weights removed, or a ``"fusion"``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, WIDTH, generator=generator)
    detector = OPNP() if kind == "fusion" else OPNP(ratios=Ratios(w_min=0.1))
    return detector.fit_features(random_features(300, generator), weight=weight, bias=None)


@cache
def ordering_detector(kind: str = "paper") -> OPNP:
    """Return a detector whose score falls with the only feature: equal features get equal scores.

    Of the ``"fusion"`` zero has the score infinity.
    """
    weight = torch.tensor([[1.0], [0.0]])
    if kind == "fusion":
        return OPNP(members=["norm"]).fit_features(torch.arange(100.0, 160.0)[:, None], weight=weight, bias=None)
    return OPNP(ratios=Ratios()).fit_features(torch.arange(-20.0, 20.0)[:, None], weight=weight, bias=None)


def random_features(rows: int, generator: torch.Generator) -> Tensor:
    """Return features of `small_detector`, as good as never with equal scores."""
    return torch.rand(rows, WIDTH, generator=generator)


def compositions(total: int) -> Iterator[list[int]]:
    """Yield every list of positive numbers with this sum: the sizes of groups of equal scores, in ascending order."""
    for cuts in range(1 << (total - 1)):
        sizes = [1]
        for place in range(total - 1):
            if cuts >> place & 1:
                sizes.append(1)
            else:
                sizes[-1] += 1
        yield sizes


def require_beta_binomial(counts: Tensor, *, of: int, samples: int, rank: int) -> None:
    """Fail unless counts of flagged samples look like what theory says, by their mean and by chi-squared.

    Where n calibration scores and a rank r decide, the share of all ID samples that is flagged is Beta(r, n + 1 - r),
    and the count among m of them is beta-binomial.

    Args:
        counts: How many were flagged in each split, shape ``(splits,)``.
        of: The number m of samples that each count is of.
        samples: The number n of calibration samples.
        rank: The rank r.

    """
    theory = stats.betabinom(of, rank, samples + 1 - rank)
    splits = len(counts)
    deviation = (float(counts.double().mean()) - theory.mean()) / (theory.std() / math.sqrt(splits))
    assert abs(deviation) <= stats.norm.isf(FALSE_FAILURES / 2), f"the mean is {deviation:.1f} standard errors off"

    shares = theory.pmf(range(of + 1))
    fewest = max(8.0, splits / 20)
    edges, expected, start = [0], list[float](), 0
    for end in range(1, of + 2):
        if splits * shares[start:end].sum() >= fewest and splits * shares[end:].sum() >= fewest:
            edges.append(end)
            expected.append(splits * shares[start:end].sum())
            start = end
    expected.append(splits * shares[start:].sum())
    bins = torch.bucketize(counts, torch.tensor(edges[1:]), right=True)
    found = torch.bincount(bins, minlength=len(expected)).double()
    wanted = torch.tensor(expected, dtype=torch.float64)
    distance = float(((found - wanted) ** 2 / wanted).sum())
    chance = stats.chi2.sf(distance, len(expected) - 1)
    assert chance >= FALSE_FAILURES, f"chi-squared is {distance:.1f} over {len(expected)} bins: {chance:.1g}"


def most_alarms(runs: int, *, level: float) -> int:
    """Return the number of alarms that a probability of `level` exceeds in one of 10 000 simulations."""
    return int(stats.binom.isf(FALSE_FAILURES, runs, level))

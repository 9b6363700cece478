"""The check of theory that simulations of splits must pass."""

import math

import torch
from scipy import stats
from torch import Tensor

__all__ = ["FALSE_FAILURES", "require_beta_binomial"]

FALSE_FAILURES = 1e-4
"""Probability with which a check by simulation fails though all is right, for each of its two statistics.

Seeds are fixed, so that a check that passes today passes tomorrow.
"""


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

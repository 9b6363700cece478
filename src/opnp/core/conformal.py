"""Verdicts with a guarantee, from scores of held-out in-distribution (ID) samples.

With n calibration scores c exchangeable with the score s of a new ID input, the p-value

    p(s) = (1 + #{c >= s}) / (n + 1)

is super-uniform: P(p <= a) <= a for every a. Flagging inputs with p <= 1 - keep therefore flags at most a share
1 - keep of ID inputs, on average over the calibration set. The decision p <= 1 - keep is taken on the integers behind
p and on the decimal that `keep` was written as, so that no rounding of a float moves it.

Of a whole batch, `benjamini_hochberg` says which inputs are OOD so that few of those said to be are not. With
calibration by class, n and the calibration scores are those of a group of classes; `pool_limits` makes the groups.

Source: Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005; Bates et al., "Testing for Outliers
with Conformal p-values", Annals of Statistics 2023.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, checked_scores
from opnp.errors import CalibrationError, OptionError

__all__ = [
    "ALONE",
    "at_least_count",
    "benjamini_hochberg",
    "conformal_p_value",
    "discovery_samples",
    "fewest_discoveries",
    "flagged_rank",
    "is_flagged",
    "keep_threshold",
    "minimum_samples",
    "pool_limits",
]

ALONE = -1
"""What `pool_limits` says of a class with a group of its own."""

_ROUNDING = 2.0**-50
"""More than a p-value and its bound are off by in float64, relatively: equal fractions count as equal."""


def at_least_count(scores: Tensor, calibration: Tensor) -> Tensor:
    """Return, for each score s, the number of calibration scores that are at least s: #{c >= s}.

    Args:
        scores: Scores to judge, shape ``(batch,)``, not NaN.
        calibration: Scores of held-out ID samples, shape ``(n,)``, any order, not NaN.

    Returns:
        Counts from 0 to n, shape ``(batch,)``, int64, on the device of `scores`.

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.

    Example:
        >>> import torch
        >>> at_least_count(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
        [3, 2, 0]

    """
    judged = checked_scores(scores, name="scores")
    ordered = checked_scores(calibration, name="calibration").to(judged.device).sort().values
    return len(ordered) - torch.searchsorted(ordered, judged, side="left")


def conformal_p_value(scores: Tensor, calibration: Tensor) -> Tensor:
    """Return the conformal p-value of each score: (1 + #{calibration >= s}) / (n + 1). Small = OOD.

    Args:
        scores: Scores to judge, larger = more OOD, shape ``(batch,)``.
        calibration: Scores of held-out ID samples, shape ``(n,)``, any order.

    Returns:
        p-values in [1/(n + 1), 1], shape ``(batch,)``, float64, on the device of `scores`.

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.

    Example:
        >>> import torch
        >>> conformal_p_value(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 0.75, 0.25]

    References:
        Bates et al., Annals of Statistics 2023, equation 2.

    """
    return (1 + at_least_count(scores, calibration)).double() / (len(calibration) + 1)


def flagged_rank(samples: int, *, keep: float) -> int:
    """Return the largest integer r with r / (samples + 1) <= 1 - keep: p-values up to that rank are flagged.

    `keep` counts as the decimal it is written as: 0.95 is 95/100, not the nearest binary fraction.

    Args:
        samples: Number n of calibration scores, at least 1.
        keep: Share of ID to keep, in (0, 1).

    Returns:
        The rank r, at least 1.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        CalibrationError: If n is too small for any input to be flagged at this `keep`.

    Example:
        >>> flagged_rank(19, keep=0.95), flagged_rank(999, keep=0.95)
        (1, 50)

    """
    rank = math.floor(_flagged_share(keep) * (samples + 1))
    if rank < 1:
        raise CalibrationError(
            f"keep={keep:g} needs at least {minimum_samples(keep=keep)} calibration samples, got {samples}: with fewer "
            f"no input could ever be flagged. Calibrate on more held-out ID samples, or lower `keep`.",
        )
    return rank


def minimum_samples(*, keep: float) -> int:
    """Return the smallest number of calibration samples that can flag anything at this `keep`: 19 at 0.95.

    Raises:
        OptionError: If `keep` lies outside (0, 1).

    Example:
        >>> minimum_samples(keep=0.95), minimum_samples(keep=0.99)
        (19, 99)

    """
    return math.ceil(1 / _flagged_share(keep)) - 1


def keep_threshold(calibration: Tensor, *, keep: float = 0.95) -> float:
    """Return the score above which an input is flagged, so that a share `keep` of ID stays in expectation.

    The threshold is the k-th smallest calibration score with k = n + 1 - r and r from `flagged_rank`, which is
    ceil(keep (n + 1)): a new ID score lies at or below it with probability at least `keep`.

    Args:
        calibration: Scores of held-out ID samples, shape ``(n,)``, any order.
        keep: Share of ID to keep, in (0, 1).

    Returns:
        The threshold t; flagged is s > t.

    Raises:
        ShapeError: If `calibration` has not exactly one axis.
        EmptyDataError: If it is empty.
        NonFiniteError: If it holds NaN.
        OptionError: If `keep` lies outside (0, 1).
        CalibrationError: If there are too few scores for this `keep`.

    Example:
        >>> import torch
        >>> keep_threshold(torch.arange(1.0, 20.0), keep=0.95)
        19.0

    """
    ordered = checked_scores(calibration, name="calibration").sort().values
    rank = flagged_rank(len(ordered), keep=keep)
    return float(ordered[len(ordered) - rank])


def is_flagged(scores: Tensor, calibration: Tensor, *, keep: float = 0.95) -> Tensor:
    """Return whether each input is flagged as OOD: whether its p-value is at most 1 - keep, decided on integers.

    Args:
        scores: Scores to judge, larger = more OOD, shape ``(batch,)``.
        calibration: Scores of held-out ID samples, shape ``(n,)``, any order.
        keep: Share of ID to keep, in (0, 1).

    Returns:
        True = OOD, shape ``(batch,)``, bool, on the device of `scores`.

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.
        OptionError: If `keep` lies outside (0, 1).
        CalibrationError: If there are too few calibration scores for this `keep`.

    Example:
        >>> import torch
        >>> is_flagged(torch.tensor([19.0, 19.5]), torch.arange(1.0, 20.0), keep=0.95).tolist()
        [False, True]

    """
    return 1 + at_least_count(scores, calibration) <= flagged_rank(len(calibration), keep=keep)


def benjamini_hochberg(p_values: Tensor, *, fdr: float) -> Tensor:
    """Return which inputs of a batch are discoveries: OOD, with a false discovery rate of at most `fdr`.

    Of m p-values in ascending order p_(1), ..., p_(m) the discoveries are those of at most p_(k), k being the largest
    rank with

        p_(k) <= fdr k / m

    and none where there is no such rank. The share of ID inputs among the discoveries (0 where there are none) is then
    at most `fdr` times the share of ID inputs in the batch, in expectation over calibration set and batch. p-values
    from one calibration set depend on each other positively (PRDS, where no two scores are equal), for which this bound
    holds. By class those of each group do so, and groups that share no samples do not depend on each other. Where a
    pooled group borrows samples of another (`pool_limits`) the bound is not proven; simulations keep it
    (``tests/reliability/test_guarantees_batches.py``). Equal p-values are decided alike, and the order of the batch
    plays no part.

    The least p-value of n calibration samples is 1 / (n + 1), so that k discoveries among m inputs need
    n + 1 >= m / (fdr k): `discovery_samples`.

    Args:
        p_values: Conformal p-values of the whole batch, shape ``(batch,)``, in [0, 1]. In a narrower dtype than float64
            one that is off its bound by no more than the rounding of the dtype counts as equal to it.
        fdr: Level of the false discovery rate, in (0, 1), taken as the decimal it is written as.

    Returns:
        True = discovery, shape ``(batch,)``, bool, on the device of `p_values`.

    Raises:
        ShapeError: If `p_values` has not exactly one axis.
        EmptyDataError: If it is empty.
        NonFiniteError: If it holds NaN.
        OptionError: If a p-value lies outside [0, 1], or `fdr` outside (0, 1).

    Example:
        >>> import torch
        >>> benjamini_hochberg(torch.tensor([0.9, 0.01, 0.04, 0.03]), fdr=0.05).tolist()
        [False, True, False, False]
        >>> benjamini_hochberg(torch.tensor([0.9, 0.01, 0.03, 0.03]), fdr=0.05).tolist()
        [False, True, True, True]

    References:
        Benjamini and Hochberg, "Controlling the False Discovery Rate", JRSS B 1995; Bates, Candes, Lei, Romano and
        Sesia, "Testing for Outliers with Conformal p-values", Annals of Statistics 2023, theorem 2.

    """
    values, level = checked_scores(p_values, name="p_values"), checked_fraction(fdr, name="fdr")
    if not 0 <= float(values.min()) <= float(values.max()) <= 1:
        raise OptionError(f"`p_values` must lie in [0, 1], got {float(values.min()):g} to {float(values.max()):g}.")
    ordered, inputs = values.sort().values, len(values)
    rounding = _ROUNDING + (torch.finfo(p_values.dtype).eps / 2 if p_values.is_floating_point() else 0)
    bounds = level * torch.arange(1, inputs + 1, device=values.device).double() / inputs
    return values <= torch.where(ordered <= bounds * (1 + rounding), ordered, -1.0).amax()


def discovery_samples(discoveries: int, *, tested: int, fdr: float) -> int:
    """Return the fewest calibration samples that so many discoveries take: the least n with n + 1 >= m / (fdr k).

    Args:
        discoveries: Number k of inputs that are to be discoveries, 1 to m.
        tested: Number m of inputs in the batch.
        fdr: Level of the false discovery rate, in (0, 1).

    Raises:
        OptionError: If `fdr` lies outside (0, 1), or there are not 1 to m discoveries.

    Example:
        >>> discovery_samples(1, tested=10_000, fdr=0.1), discovery_samples(100, tested=10_000, fdr=0.1)
        (99999, 999)

    """
    if not 1 <= discoveries <= tested:
        raise OptionError(f"`discoveries` must lie in 1 to `tested`, got {discoveries} of {tested}.")
    return math.ceil(tested / (discoveries * _decimal(fdr, name="fdr"))) - 1


def fewest_discoveries(samples: int, *, tested: int, fdr: float) -> int:
    """Return how many discoveries n calibration samples let through together: the least k with n + 1 >= m / (fdr k).

    Fewer inputs with the least p-value are no discoveries. Above `tested` there can be none at all.

    Args:
        samples: Number n of calibration samples.
        tested: Number m of inputs in the batch.
        fdr: Level of the false discovery rate, in (0, 1).

    Raises:
        OptionError: If `fdr` lies outside (0, 1).

    Example:
        >>> fewest_discoveries(999, tested=10_000, fdr=0.1), fewest_discoveries(8, tested=100, fdr=0.1)
        (100, 112)

    """
    return math.ceil(tested / (_decimal(fdr, name="fdr") * (samples + 1)))


def pool_limits(counts: Tensor, *, fewest: int) -> Tensor:
    """Return which classes have calibration scores of their own, and which scores those of the pooled group share.

    A class that fewer than `fewest` calibration samples were predicted as is judged by a pooled group: by the samples
    of all classes that were predicted at most as often as its limit says. The limit is `fewest`; where these are too
    few together, it is the next larger count, so that the smallest of the other classes joins them.

    Counts are taken as if the input to judge were one more sample of its class. All samples of a group are exchanged
    alike then, and its p-values are super-uniform exactly, although the groups were made by looking at the samples.

    Args:
        counts: Calibration samples predicted as each class, shape ``(classes,)``, int64.
        fewest: Samples that the level needs: `minimum_samples(keep=keep)`. There are as many in all.

    Returns:
        For each class the limit of its pooled group, or `ALONE`, shape ``(classes,)``, int64, on the CPU.

    Example:
        >>> import torch
        >>> pool_limits(torch.tensor([400, 30, 12, 9, 0]), fewest=19).tolist()
        [-1, -1, 19, 19, 19]
        >>> pool_limits(torch.tensor([400, 30, 12, 0]), fewest=19).tolist()
        [-1, 31, 30, 30]

    References:
        Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, section 4.5 (Mondrian predictors).

    """
    found, limits = counts.cpu(), dict[int, int]()
    for own in found.unique().tolist():
        bag = found.clone()
        bag[int((found == own).nonzero()[0])] += 1
        limit = fewest
        while 0 < int(bag[bag <= limit].sum()) <= fewest and bool((bag > limit).any()):
            limit = int(bag[bag > limit].min())
        limits[own] = limit if own < limit else ALONE
    return torch.tensor([limits[own] for own in found.tolist()], dtype=torch.int64, device="cpu")


def _flagged_share(keep: float) -> Fraction:
    return 1 - _decimal(keep, name="keep")


def _decimal(value: float, *, name: str) -> Fraction:
    return Fraction(str(checked_fraction(value, name=name)))

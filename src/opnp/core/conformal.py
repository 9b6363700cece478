"""Verdicts with a guarantee, from scores of held-out in-distribution (ID) samples.

With n calibration scores c exchangeable with the score s of a new ID input, the p-value

    p(s) = (1 + #{c >= s}) / (n + 1)

is super-uniform: P(p <= a) <= a for every a. Flagging inputs with p <= 1 - keep therefore flags at most a share
1 - keep of ID inputs, on average over the calibration set. The decision p <= 1 - keep is taken on the integers behind
p and on the decimal that `keep` was written as, so that no rounding of a float moves it.

Source: Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005; Bates et al., "Testing for Outliers
with Conformal p-values", Annals of Statistics 2023.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, checked_scores
from opnp.errors import CalibrationError

__all__ = ["at_least_count", "conformal_p_value", "flagged_rank", "is_flagged", "keep_threshold", "minimum_samples"]


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


def _flagged_share(keep: float) -> Fraction:
    return 1 - Fraction(str(checked_fraction(keep, name="keep")))

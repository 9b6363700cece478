"""The monitor's verdict where only scores and conformal p-values are at hand, and the calibration scores are not."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from opnp.core.checks import checked_scores
from opnp.errors import CalibrationError, ShapeError
from opnp.monitor.drift import DriftSummary, DriftTest
from opnp.monitor.online_p_values import RANKS, earlier_counts, numbered_uniforms, online_p_value
from opnp.monitor.stream import checked_seed

__all__ = ["drift_of_p_values", "inferred_calibration_samples"]

_FEWEST_ROWS = 100
_FEWEST_SAMPLES = 19
_DISTINCT = 10
_MOST_SAMPLES = 4_000_000
_POWERS_OF_TEN = tuple(10**digits for digits in range(2, 7))
"""What p-values that were rounded are multiples of a fraction of."""


def drift_of_p_values(
    scores: Tensor,
    p_values: Tensor,
    *,
    calibration_samples: int | Tensor,
    groups: Tensor | None = None,
    level: float = 0.01,
    seed: int = 0,
) -> DriftSummary:
    """Return the verdict on a whole stream from its scores and conformal p-values, without the calibration scores.

    A p-value says how many calibration scores are at least as large, and the scores order the stream; together they
    give the online p-values, exactly where no score of the stream equals a calibration score. Where one does, the
    online p-value comes out too large, never too small. The test bets on small p-values alone, and so the promise of
    `DriftMonitor` holds with ties too; a stream that became too ordinary is not noticed.

    Where a detector is calibrated by class, each score is ranked among the calibration scores of its group and the
    earlier scores of the same group: these p-values are independent and uniform too, in whatever order the groups come.
    Where a pooled group borrows samples of another group that is not proven; the detector itself, which ranks among all
    calibration scores, needs no such thing.

    Args:
        scores: Scores of the stream, in its order, shape ``(samples,)``.
        p_values: Their conformal p-values, (1 + #{calibration >= s}) / (n + 1), shape ``(samples,)``.
        calibration_samples: The number n, or that of each p-value, shape ``(samples,)``.
        groups: Group of each sample, shape ``(samples,)``, whole numbers, one n in each; None where all are one.
        level: Probability of ever raising a false alarm, at most; in (0, 1).
        seed: Seed of the numbers that break ties.

    Raises:
        ShapeError: If the shapes differ.
        CalibrationError: If the p-values are not those of n calibration samples, or do not fall as scores rise, or
            there is more than one n in a group.
        OptionError: If `level` lies outside (0, 1).

    Example:
        >>> import torch
        >>> p_values = torch.full((40,), 1 / 100, dtype=torch.float64)
        >>> drift_of_p_values(torch.arange(40.0), p_values, calibration_samples=99).alarm_at is None
        False

    """
    ordered, values = checked_scores(scores, name="scores").cpu(), checked_scores(p_values, name="p_values").cpu()
    if len(ordered) != len(values):
        raise ShapeError(f"`scores` and `p_values` must be of one length, got {len(ordered)} and {len(values)}.")
    numbers = torch.as_tensor(calibration_samples, device="cpu").expand(len(ordered))
    places = torch.zeros_like(ordered, dtype=torch.int64) if groups is None else groups.cpu()
    uniforms = numbered_uniforms(0, len(ordered), seed=checked_seed(seed), sequence=RANKS)
    online = torch.empty_like(ordered)
    for place in places.unique().tolist():
        own = places == place
        online[own] = _online(ordered[own], values[own], numbers[own].unique(), uniforms[own])
    test = DriftTest(level=level, is_one_sided=True)
    test.update(online)
    return test.summary()


def _online(scores: Tensor, p_values: Tensor, numbers: Tensor, uniforms: Tensor) -> Tensor:
    """Return the online p-values of the samples of one group, in their order."""
    if len(numbers) > 1:
        shown = ", ".join(map(str, numbers[:5].tolist()))
        raise CalibrationError(
            f"the p-values are of {shown} calibration samples: they are not of one detector. Monitor the files of each "
            f"detector by themselves."
        )
    samples = int(numbers)
    at_least = _at_least(scores, p_values, samples)
    distinct, inverse = scores.unique(return_inverse=True)
    above, equal, _ = earlier_counts(len(distinct) - 1 - inverse, torch.zeros_like(distinct, dtype=torch.int64))
    return online_p_value(at_least + above, equal, uniforms, calibration=samples, start=0)


def inferred_calibration_samples(p_values: Tensor) -> int:
    """Return the number n of calibration samples, from p-values that are multiples of 1 / (n + 1).

    A hundred p-values are asked for: that all are multiples of a coarser fraction is then next to impossible.

    Args:
        p_values: Conformal p-values, shape ``(samples,)``, float64.

    Raises:
        CalibrationError: If there are too few p-values, or they have no common denominator of at least 20, or it is a
            power of ten: then they may have been rounded.

    Example:
        >>> import torch
        >>> inferred_calibration_samples((1 + torch.arange(200) % 50).double() / 50)
        49

    """
    hint = "Give the detector, or the number of samples that it was calibrated on."
    values = checked_scores(p_values, name="p_values").cpu()
    if len(values) < _FEWEST_ROWS:
        raise CalibrationError(
            f"{len(values)} p-values are too few to tell the number of calibration samples, which takes "
            f"{_FEWEST_ROWS}. {hint}",
        )
    common, rest = 1, values.unique()
    while len(rest) and common <= _MOST_SAMPLES:
        common = math.lcm(common, Fraction(float(rest[0])).limit_denominator(_MOST_SAMPLES).denominator)
        rest = rest[1:][(rest[1:] * common).round() / common != rest[1:]]
    if not _FEWEST_SAMPLES < common <= _MOST_SAMPLES:
        raise CalibrationError(f"the p-values do not tell the number of calibration samples. {hint}")
    if common in _POWERS_OF_TEN:
        raise CalibrationError(
            f"the p-values are multiples of 1/{common}: they were rounded, or there were {common - 1} calibration "
            f"samples. If it is the latter, say so: `--calibration-samples {common - 1}`, or `calibration_samples`. If "
            f"not, score the data again, or give the detector.",
        )
    return common - 1


def _at_least(scores: Tensor, p_values: Tensor, samples: int) -> Tensor:
    """Return #{calibration >= s} of each score, from its p-value, after checking that the two belong together."""
    ranks = (p_values * (samples + 1)).round().long()
    if (
        not torch.equal(ranks.double() / (samples + 1), p_values)
        or int(ranks.min()) < 1
        or int(ranks.max()) > samples + 1
    ):
        raise CalibrationError(
            f"the p-values are not those of {samples} calibration samples, which are multiples of 1/{samples + 1} to "
            f"the last digit. Give the number of samples that the detector was calibrated on, and p-values as they "
            f"were written, not rounded; or give the detector.",
        )
    distinct = ranks.unique().tolist()
    divisor = math.gcd(samples + 1, *distinct)
    if divisor > 1 and len(distinct) >= _DISTINCT and len(ranks) >= _FEWEST_ROWS:
        raise CalibrationError(
            f"the p-values are not those of {samples} calibration samples: all are multiples of "
            f"1/{(samples + 1) // divisor}. Give the number of samples that the detector was calibrated on.",
        )
    order = scores.argsort()
    steps, rises = ranks[order].diff(), scores[order].diff() > 0
    if bool((steps > 0).any()) or bool((steps[~rises] != 0).any()):
        raise CalibrationError(
            "the p-values do not fall as the scores rise: they are not of one detector. Monitor the files of each "
            "detector by themselves.",
        )
    return ranks - 1

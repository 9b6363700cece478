"""Thresholds and curves of two sets of scores: larger = more OOD, exact with ties, ID as the positive class."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from opnp.errors import EmptyDataError, OptionError

__all__ = ["Points", "area_under_roc", "keeping_threshold", "precision_points", "roc_points", "thinned"]

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Points:
    """Points of a curve.

    Attributes:
        x: Abscissae, ascending, shape ``(points,)``.
        y: Ordinates, shape ``(points,)``.

    """

    x: Scores
    y: Scores


def keeping_threshold(id_scores: Scores, keep: float) -> float:
    """Return the smallest ID score that at least the share `keep` of the ID scores do not exceed.

    An input is kept where its score does not exceed the threshold. It is that of `opnp.core.fpr_at_tpr`.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        keep: Share of ID to keep, in (0, 1), taken as the decimal it is written as.

    Returns:
        The threshold, in units of the score.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no scores.

    Example:
        >>> keeping_threshold(np.array([1.0, 4.0, 2.0, 3.0]), 0.75)
        3.0

    """
    if not 0 < keep < 1:
        raise OptionError(f"`keep` must lie between 0 and 1, got {keep!r}. Give 0.95 for 95 %.")
    if len(id_scores) == 0:
        raise EmptyDataError("There are no ID scores: a threshold needs at least one.")
    place = math.ceil(Fraction(str(keep)) * len(id_scores)) - 1
    return float(np.partition(id_scores, place)[place])


def roc_points(id_scores: Scores, ood_scores: Scores) -> Points:
    """Return the ROC curve: share of OOD kept (x), share of ID kept (y), one point for each threshold.

    Samples with equal scores pass a threshold together, so that ties become slanted lines and the area under straight
    lines between the points is the AUROC.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.

    Returns:
        The points, from (0, 0) to (1, 1).

    Example:
        >>> curve = roc_points(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
        >>> curve.x.tolist(), curve.y.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])

    """
    kept_id, kept_ood = _kept(id_scores, ood_scores)
    return Points(np.append(0.0, kept_ood / len(ood_scores)), np.append(0.0, kept_id / len(id_scores)))


def precision_points(id_scores: Scores, ood_scores: Scores) -> Points:
    """Return the precision-recall curve, ID positive: share of ID kept (x), share of ID among what is kept (y).

    The area of steps that hold each precision back to the recall before it, from 0 on, is the average precision. The
    first point stands at recall 0 with the precision of the second.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.

    Returns:
        The points, in ascending order of recall.

    Example:
        >>> curve = precision_points(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
        >>> curve.x.tolist(), [round(value, 3) for value in curve.y.tolist()]
        ([0.0, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.667, 0.5])

    """
    kept_id, kept_ood = _kept(id_scores, ood_scores)
    precision = kept_id / (kept_id + kept_ood)
    return Points(np.append(0.0, kept_id / len(id_scores)), np.append(precision[:1], precision))


def area_under_roc(id_scores: Scores, ood_scores: Scores) -> float:
    """Return the chance that an OOD sample scores above an ID one, ties counting half.

    Example:
        >>> area_under_roc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
        0.875

    """
    ordered = np.sort(id_scores)
    below = np.searchsorted(ordered, ood_scores, side="left").sum()
    not_above = np.searchsorted(ordered, ood_scores, side="right").sum()
    return int(below + not_above) / (2 * len(id_scores) * len(ood_scores))


def thinned(curve: Points, most: int = 512) -> Points:
    """Return a curve of at most `most` points: some of its own, evenly spread along its length, both ends among them.

    Between neighbours that stay, a monotone curve cannot leave their rectangle, so that the area of a ROC curve moves
    by no more than ``1 / most``, and by far less where the curve is smooth.

    Args:
        curve: A curve.
        most: Points to keep, at least 2.

    Returns:
        The curve itself where it is short enough.

    Example:
        >>> line = Points(np.linspace(0, 1, 1001), np.linspace(0, 1, 1001))
        >>> thinned(line, 5).x.tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]

    """
    if len(curve.x) <= most:
        return curve
    steps = np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))
    length = np.append(0.0, steps.cumsum())
    index = np.unique(np.searchsorted(length, np.linspace(0, length[-1], most) * (1 - 1e-12)))
    index[-1] = len(length) - 1
    return Points(curve.x[index], curve.y[index])


def _kept(id_scores: Scores, ood_scores: Scores) -> tuple[Scores, Scores]:
    """Return how many ID and how many OOD samples are kept at each distinct score, in ascending order, float64."""
    if len(id_scores) == 0 or len(ood_scores) == 0:
        raise EmptyDataError("A curve needs at least one ID score and one OOD score.")
    levels = np.unique(np.concatenate([id_scores, ood_scores]))
    counts = [np.searchsorted(np.sort(each), levels, side="right") for each in (id_scores, ood_scores)]
    return counts[0].astype(np.float64), counts[1].astype(np.float64)

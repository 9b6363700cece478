"""All figures of detection at once, from one sort of each set of scores.

The functions of `core.metrics` each sort for themselves. Where hundreds of settings are judged, this is what is called:
the figures are the same.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from opnp.core.checks import checked_scores

__all__ = ["DetectionMetrics", "detection_metrics"]

_TPR = Fraction(95, 100)


class DetectionMetrics(NamedTuple):
    """How well OOD samples are told from ID samples. Fractions in [0, 1].

    Attributes:
        fpr95: Share of OOD kept where 95 % of ID is kept (ID positive, as in the papers).
        fpr95_ood_positive: Share of ID flagged where 95 % of OOD is caught (OOD positive, as in OpenOOD).
        auroc: Area under the ROC curve.
        aupr_id_positive: Average precision with ID as the positive class.
        aupr_ood_positive: Average precision with OOD as the positive class.

    """

    fpr95: float
    fpr95_ood_positive: float
    auroc: float
    aupr_id_positive: float
    aupr_ood_positive: float


def detection_metrics(id_scores: Tensor, ood_sets: Iterable[Tensor]) -> list[DetectionMetrics]:
    """Return the figures of each OOD set against the same ID samples; larger score = more OOD.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_sets: Scores of OOD samples, each of shape ``(m,)``.

    Returns:
        One entry a set, in their order. Ties are exact, as in `auroc`, `aupr` and `fpr_at_tpr`.

    Raises:
        ShapeError: If scores have not exactly one axis.
        EmptyDataError: If a set is empty.
        NonFiniteError: If scores hold NaN.

    Example:
        >>> import torch
        >>> [figures] = detection_metrics(torch.tensor([1.0, 2.0]), [torch.tensor([2.0, 3.0])])
        >>> figures.auroc, figures.fpr95, figures.fpr95_ood_positive
        (0.875, 0.5, 0.5)

    """
    inside = checked_scores(id_scores, name="id_scores").sort().values
    passed_inside = torch.searchsorted(inside, inside, side="right").double()  # ID samples that score no more
    return [_metrics(inside, passed_inside, ood) for ood in ood_sets]


def _metrics(inside: Tensor, passed_inside: Tensor, ood_scores: Tensor) -> DetectionMetrics:
    outside = checked_scores(ood_scores, name="ood_scores").to(inside.device).sort().values
    id_count, ood_count = len(inside), len(outside)
    id_below = torch.searchsorted(inside, outside, side="left")  # for each OOD sample: ID samples that score less
    id_not_above = torch.searchsorted(inside, outside, side="right")
    ood_not_above = torch.searchsorted(outside, inside, side="right").double()  # for each ID sample
    flagged_inside = (id_count - id_below).double()  # for each OOD sample: ID samples that score no less
    flagged_outside = (ood_count - torch.searchsorted(outside, outside, side="left")).double()
    id_threshold = inside[_needed(id_count) - 1 :][:1]
    ood_threshold = outside[ood_count - _needed(ood_count) :][:1]
    return DetectionMetrics(
        fpr95=int(torch.searchsorted(outside, id_threshold, side="right")) / ood_count,
        fpr95_ood_positive=(id_count - int(torch.searchsorted(inside, ood_threshold, side="left"))) / id_count,
        auroc=int(id_below.sum() + id_not_above.sum()) / (2 * id_count * ood_count),
        aupr_id_positive=float((passed_inside / (passed_inside + ood_not_above)).mean()),
        aupr_ood_positive=float((flagged_outside / (flagged_outside + flagged_inside)).mean()),
    )


def _needed(count: int) -> int:
    """Return how many of the positive class must be kept."""
    return math.ceil(_TPR * count)

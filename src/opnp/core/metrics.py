"""Metrics of detection and of the classifier. All are fractions in [0, 1], exact with ties, computed in float64.

Detection metrics take two sets of scores, those of in-distribution (ID) samples first; larger score = more OOD. All of
them are read off one curve: how many samples of either set have passed each distinct score.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, checked_matrix, checked_scores, require_class_indices
from opnp.errors import EmptyDataError, InputTypeError, OptionError, ShapeError
from opnp.values.figures import DetectionFigures

__all__ = [
    "DetectionFigures",
    "PositiveClass",
    "Reliability",
    "accuracy",
    "aupr",
    "auroc",
    "detection_metrics",
    "expected_calibration_error",
    "fpr_at_tpr",
    "passed_counts",
    "reliability",
]

PositiveClass = Literal["id", "ood"]

_TPR = Fraction(95, 100)


@dataclass(frozen=True, eq=False, slots=True)
class Reliability:
    """Confidence and accuracy by bins of equal width over (0, 1]; empty bins hold zeros.

    Attributes:
        count: Samples in each bin, shape ``(bins,)``, int64.
        confidence: Mean confidence of each bin, shape ``(bins,)``, float64.
        accuracy: Share of right answers in each bin, shape ``(bins,)``, float64.

    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor


def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the area under the ROC curve: the chance that an OOD sample scores above an ID one, ties counting half.

    It is the same whichever class is called positive.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.

    Returns:
        AUROC in [0, 1].

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
        0.875

    References:
        Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
        Radiology 1982.

    """
    return _area(_Counts.of(id_scores, ood_scores))


def aupr(id_scores: Tensor, ood_scores: Tensor, *, positive: PositiveClass = "id") -> float:
    """Return the area under the precision-recall curve as average precision, with the class named `positive`.

    Average precision is sum_k (R_k - R_{k-1}) P_k over the distinct thresholds; samples with equal scores pass a
    threshold together.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.
        positive: ``"id"`` or ``"ood"``.

    Returns:
        AUPR in [0, 1]. A detector that knows nothing reaches the share of the positive class.

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.
        OptionError: If `positive` is unknown.

    Example:
        >>> import torch
        >>> inside, outside = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0])
        >>> round(aupr(inside, outside, positive="id"), 6), round(aupr(inside, outside, positive="ood"), 6)
        (0.833333, 0.833333)

    References:
        Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML 2006.

    """
    return _average_precision(_Counts.of(id_scores, ood_scores), positive)


def fpr_at_tpr(id_scores: Tensor, ood_scores: Tensor, *, tpr: float = 0.95, positive: PositiveClass = "id") -> float:
    """Return the false-positive rate where at least the share `tpr` of the positive class is kept.

    ``positive="id"``: the share of OOD samples that pass as ID, at the smallest ID score that at least `tpr` of the ID
    scores do not exceed. This is the FPR95 of the papers. ``positive="ood"``: the share of ID samples that are flagged,
    at the largest OOD score that at least `tpr` of the OOD scores reach; OpenOOD and pytorch-ood report this one.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.
        tpr: Share of the positive class to keep, in (0, 1), taken as the decimal it is written as.
        positive: ``"id"`` or ``"ood"``.

    Returns:
        The false-positive rate in [0, 1].

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.
        OptionError: If `tpr` lies outside (0, 1) or `positive` is unknown.

    Example:
        >>> import torch
        >>> inside, outside = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([3.0, 4.0, 5.0, 6.0])
        >>> fpr_at_tpr(inside, outside, tpr=0.75), fpr_at_tpr(inside, outside, tpr=0.75, positive="ood")
        (0.25, 0.25)
        >>> fpr_at_tpr(inside, outside), fpr_at_tpr(inside, outside, positive="ood")
        (1.0, 0.5)

    References:
        Liang, Li and Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
        ICLR 2018, with ID as the positive class.

    """
    share = Fraction(str(checked_fraction(tpr, name="tpr")))
    return _false_positives(_Counts.of(id_scores, ood_scores), positive, share)


def detection_metrics(id_scores: Tensor, ood_sets: Iterable[Tensor]) -> list[DetectionFigures]:
    """Return all figures of each OOD set against the same ID samples; larger score = more OOD.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_sets: Scores of OOD samples, each of shape ``(m,)``.

    Returns:
        One entry a set, in their order, equal to what `fpr_at_tpr`, `auroc` and `aupr` return.

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
    return [
        DetectionFigures(
            fpr95=_false_positives(counts, "id", _TPR),
            fpr95_ood_positive=_false_positives(counts, "ood", _TPR),
            auroc=_area(counts),
            aupr_id_positive=_average_precision(counts, "id"),
            aupr_ood_positive=_average_precision(counts, "ood"),
        )
        for counts in (_Counts.of(id_scores, ood_scores) for ood_scores in ood_sets)
    ]


def passed_counts(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many ID and how many OOD samples score no more than each distinct score: the ROC curve, in counts.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        ood_scores: Scores of OOD samples, shape ``(m,)``.

    Returns:
        Two tensors of shape ``(distinct scores,)``, int64, ascending to n and to m.

    Raises:
        ShapeError: If an argument has not exactly one axis.
        EmptyDataError: If an argument is empty.
        NonFiniteError: If an argument holds NaN.

    Example:
        >>> import torch
        >>> passed_counts(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
        (tensor([1, 2, 2]), tensor([0, 1, 2]))

    """
    inside, outside = _Counts.of(id_scores, ood_scores)
    return inside.cumsum(0), outside.cumsum(0)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose largest logit is that of their label.

    Args:
        logits: Logits or probabilities, shape ``(batch, classes)``.
        labels: Class indices, shape ``(batch,)``, any integer dtype.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ShapeError: If the shapes do not fit together.
        InputTypeError: If `labels` are no integers.
        EmptyDataError: If there are no samples.
        OptionError: If a label is no class index.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5

    """
    targets = _checked_labels(logits, labels, name="logits")
    return int((logits.argmax(1) == targets).sum()) / len(targets)


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """Return count, mean confidence and accuracy in bins of equal width of the largest probability.

    Args:
        probabilities: Class probabilities, shape ``(batch, classes)``, in [0, 1].
        labels: Class indices, shape ``(batch,)``, any integer dtype.
        bins: Number of bins; bin b holds confidences in (b / bins, (b + 1) / bins].

    Returns:
        The reliability table.

    Raises:
        ShapeError: If the shapes do not fit together.
        InputTypeError: If `labels` are no integers.
        EmptyDataError: If there are no samples.
        OptionError: If a label is no class index, a probability lies outside [0, 1] or `bins` is below 1.

    Example:
        >>> import torch
        >>> table = reliability(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]), bins=2)
        >>> table.count.tolist(), [round(value, 6) for value in table.confidence.tolist()], table.accuracy.tolist()
        ([0, 2], [0.0, 0.8], [0.0, 0.5])

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.

    """
    targets = _checked_labels(probabilities, labels, name="probabilities")
    if bins < 1:
        raise OptionError(f"`bins` must be at least 1, got {bins!r}.")
    confidence, predicted = probabilities.double().max(1)
    if not bool(((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all()):
        raise OptionError("`probabilities` must lie in [0, 1]: take `torch.softmax(logits, 1)` first.")
    index = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins)
    safe = count.clamp_min(1)
    return Reliability(
        count=count,
        confidence=torch.bincount(index, weights=confidence, minlength=bins) / safe,
        accuracy=torch.bincount(index, weights=(predicted == targets).double(), minlength=bins) / safe,
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Return the ECE: the mean gap between confidence and accuracy over bins, weighted by their counts.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b|.

    Args:
        probabilities: Class probabilities, shape ``(batch, classes)``, in [0, 1].
        labels: Class indices, shape ``(batch,)``, any integer dtype.
        bins: Number of bins of equal width.

    Returns:
        ECE in [0, 1].

    Raises:
        ShapeError: If the shapes do not fit together.
        InputTypeError: If `labels` are no integers.
        EmptyDataError: If there are no samples.
        OptionError: If a label is no class index, a probability lies outside [0, 1] or `bins` is below 1.

    Example:
        >>> import torch
        >>> round(expected_calibration_error(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]), bins=2), 6)
        0.3

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    """
    table = reliability(probabilities, labels, bins=bins)
    gap = (table.accuracy - table.confidence).abs()
    return float((gap * table.count).sum() / table.count.sum())


class _Counts(NamedTuple):
    """How many samples of either set have each distinct score, in ascending order of the scores, int64."""

    inside: Tensor
    outside: Tensor

    @classmethod
    def of(cls, id_scores: Tensor, ood_scores: Tensor) -> Self:
        """Return the counts by one sort of both sets."""
        inside = checked_scores(id_scores, name="id_scores")
        outside = checked_scores(ood_scores, name="ood_scores").to(inside.device)
        scores, order = torch.cat([inside, outside]).sort()
        is_last = torch.ones_like(scores, dtype=torch.bool)
        is_last[:-1] = scores[1:] != scores[:-1]
        passed = (order < len(inside)).cumsum(0)[is_last]
        every = is_last.nonzero().flatten() + 1
        start = passed.new_zeros(1)
        return cls(passed.diff(prepend=start), (every - passed).diff(prepend=start))

    def passing(self, positive: PositiveClass) -> tuple[Tensor, Tensor]:
        """Return the counts of the positive and of the other class, the most positive score first."""
        if positive == "id":
            return self.inside, self.outside
        if positive == "ood":
            return self.outside.flip(0), self.inside.flip(0)
        raise OptionError(f'`positive` must be "id" or "ood", got {positive!r}.')


def _area(counts: _Counts) -> float:
    inside, outside = counts
    passed = inside.cumsum(0)  # ID samples that score no more
    pairs = 2 * int(inside.sum()) * int(outside.sum())
    return int((outside * (2 * passed - inside)).sum()) / pairs


def _average_precision(counts: _Counts, positive: PositiveClass) -> float:
    hits, misses = counts.passing(positive)
    passed = hits.cumsum(0)
    every = passed + misses.cumsum(0)
    return float((hits.double() * passed.double() / every.double()).sum() / int(passed[-1]))


def _false_positives(counts: _Counts, positive: PositiveClass, tpr: Fraction) -> float:
    """Return the share of the other class that passes where the share `tpr` of the positive class does."""
    hits, misses = (each.cumsum(0) for each in counts.passing(positive))
    place = torch.searchsorted(hits, math.ceil(tpr * int(hits[-1])))
    return int(misses[place]) / int(misses[-1])


def _checked_labels(logits: Tensor, labels: Tensor, *, name: str) -> Tensor:
    checked_matrix(logits, name=name, axes="(batch, classes)")
    if labels.shape != logits.shape[:1]:
        raise ShapeError(f"`labels` must have shape {tuple(logits.shape[:1])}, got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"`labels` must be integer class indices, got {labels.dtype}.")
    if len(labels) == 0:
        raise EmptyDataError("There are no samples: at least one is needed.")
    targets = labels.long()
    require_class_indices(targets, classes=logits.shape[1])
    return targets

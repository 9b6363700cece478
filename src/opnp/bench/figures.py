"""Figures of a record from scores, logits and labels."""

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from opnp.bench.bench_record import ClassifierFigures, DetectionFigures
from opnp.core import accuracy, detection_metrics, expected_calibration_error, reliability

__all__ = ["CALIBRATION_BINS", "classifier_figures", "detection_figures", "mean_figures"]

CALIBRATION_BINS = 15


def detection_figures(inside: Tensor, outside: Tensor) -> DetectionFigures:
    """Return how well the scores of one OOD set are told from those of ID samples; larger = more OOD.

    Example:
        >>> import torch
        >>> detection_figures(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])).auroc
        0.875

    """
    [figures] = detection_metrics(inside, [outside])
    return DetectionFigures(**figures._asdict())


def mean_figures(figures: Sequence[DetectionFigures]) -> DetectionFigures | None:
    """Return the mean of each figure, or None of none.

    Example:
        >>> mean_figures([DetectionFigures(0.5, 0, 1, 0, 0), DetectionFigures(0.25, 0, 0.5, 0, 0)])
        DetectionFigures(fpr95=0.375, fpr95_ood_positive=0.0, auroc=0.75, aupr_id_positive=0.0, aupr_ood_positive=0.0)

    """
    if not figures:
        return None
    columns = zip(*map(astuple, figures), strict=True)
    return DetectionFigures(*(sum(column) / len(figures) for column in columns))


def classifier_figures(logits: Tensor, labels: Tensor) -> ClassifierFigures:
    """Return accuracy, calibration error and reliability of logits, shape ``(batch, classes)``, on ID samples.

    Example:
        >>> import torch
        >>> figures = classifier_figures(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        >>> figures.accuracy, round(figures.ece, 4)
        (1.0, 0.1192)

    """
    probabilities = torch.softmax(logits.double(), dim=1)
    table = reliability(probabilities, labels, bins=CALIBRATION_BINS)
    return ClassifierFigures(
        accuracy=accuracy(logits, labels),
        ece=expected_calibration_error(probabilities, labels, bins=CALIBRATION_BINS),
        bin_count=tuple(table.count.tolist()),
        bin_confidence=tuple(table.confidence.tolist()),
        bin_accuracy=tuple(table.accuracy.tolist()),
    )

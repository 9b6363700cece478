"""Figures of a record from scores, logits and labels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.core import accuracy, detection_metrics, expected_calibration_error, reliability
from opnp.data import LinearHead
from opnp.values.figures import ClassifierFigures, DetectionFigures

__all__ = ["CALIBRATION_BINS", "classifier_figures", "detection_figures", "head_logits"]

CALIBRATION_BINS = 15


def detection_figures(inside: Tensor, outside: Tensor) -> DetectionFigures:
    """Return how well the scores of one OOD set are told from those of ID samples; larger = more OOD.

    Example:
        >>> import torch
        >>> detection_figures(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])).auroc
        0.875

    """
    [figures] = detection_metrics(inside, [outside])
    return figures


def head_logits(head: LinearHead | nn.Linear, features: Tensor) -> Tensor:
    """Return the logits of a head, shape ``(batch, classes)``, float64."""
    bias = None if head.bias is None else head.bias.double()
    return linear(features.double(), head.weight.double(), bias)


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

"""Figures of scores and of classifiers, and their means."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

import msgspec

from opnp.values.reading import Share, Value

__all__ = ["ClassifierFigures", "DetectionFigures", "HeadFigures", "Nearness", "mean_figures", "means_by_side"]

Nearness = Literal["near", "far"]


class DetectionFigures(Value, frozen=True, omit_defaults=True):
    """How well OOD is told from ID. Fractions in [0, 1].

    Attributes:
        fpr95: Share of OOD kept where 95 % of ID is kept (ID positive, as in the papers).
        fpr95_ood_positive: Share of ID flagged where 95 % of OOD is caught (OOD positive, as in OpenOOD).
        auroc: Area under the ROC curve.
        aupr_id_positive: Average precision with ID as the positive class, or None where it was not taken.
        aupr_ood_positive: Average precision with OOD as the positive class, or None.

    """

    fpr95: Share
    fpr95_ood_positive: Share
    auroc: Share
    aupr_id_positive: Share | None = None
    aupr_ood_positive: Share | None = None


class HeadFigures(Value, frozen=True):
    """How well a head by itself answers on the ID test samples.

    Attributes:
        accuracy: Share of right answers, in [0, 1].
        ece: Expected calibration error of its softmax at temperature 1, in [0, 1].

    """

    accuracy: Share
    ece: Share


class ClassifierFigures(HeadFigures, frozen=True):
    """How well logits classify ID samples, and how well their confidence is calibrated.

    Attributes:
        accuracy: Share of right answers, in [0, 1].
        ece: Expected calibration error over bins of equal width, in [0, 1].
        bin_count: Samples by bin of confidence.
        bin_confidence: Mean confidence by bin, 0 where it is empty.
        bin_accuracy: Share of right answers by bin, 0 where it is empty.

    """

    bin_count: tuple[int, ...]
    bin_confidence: tuple[Share, ...]
    bin_accuracy: tuple[Share, ...]


class SideMeans(TypedDict):
    """Means of figures over all OOD sets, over the near and over the far ones; None over none."""

    mean: DetectionFigures | None
    near: DetectionFigures | None
    far: DetectionFigures | None


def mean_figures(figures: Iterable[DetectionFigures]) -> DetectionFigures | None:
    """Return the mean of each figure, None of one that was not taken everywhere; or None of no figures.

    Example:
        >>> mean_figures([DetectionFigures(0.5, 0, 1, 0, 0), DetectionFigures(0.25, 0, 0.5, 0, 0)]).auroc
        0.75

    """
    columns = list(zip(*map(msgspec.structs.astuple, figures), strict=True))
    if not columns:
        return None
    means: list[Any] = [None if None in column else sum(column) / len(column) for column in columns]
    return DetectionFigures(*means)


def means_by_side(detection: Mapping[str, DetectionFigures], nearness: Mapping[str, Nearness]) -> SideMeans:
    """Return the means of figures by OOD set, given which sets are near and which are far."""
    return {
        "mean": mean_figures(detection.values()),
        "near": mean_figures(figures for name, figures in detection.items() if nearness[name] == "near"),
        "far": mean_figures(figures for name, figures in detection.items() if nearness[name] == "far"),
    }

"""ROC and precision-recall curves of methods, OOD set by OOD set."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from opnp.report.series.score_arithmetic import Points, area_under_roc, precision_points, roc_points, thinned
from opnp.report.series.score_series import ordered_sets
from opnp.report.series.wording import count_of_sets, listed, method_label, percent, set_title
from opnp.values.figures import Nearness

__all__ = ["CurvePanel", "CurveSeries", "MethodCurve", "curve_series"]

_Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MethodCurve:
    """Both curves of one method on one OOD set, ID as the positive class, thinned.

    Attributes:
        method: Name of the row.
        kept_ood: Share of OOD kept, ascending from 0 to 1: x of the ROC curve.
        kept_id: Share of ID kept there: its y.
        auroc: Area under the whole curve.
        recall: Share of ID kept, ascending: x of the precision-recall curve.
        precision: Share of ID among what is kept, held back to the recall before: its y.
        aupr: Average precision of the whole curve.

    """

    method: str
    kept_ood: tuple[float, ...]
    kept_id: tuple[float, ...]
    auroc: float
    recall: tuple[float, ...]
    precision: tuple[float, ...]
    aupr: float


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """The curves on one OOD set.

    Attributes:
        set: Name of the OOD set, without ``ood_``.
        nearness: ``near`` or ``far``.
        curves: The methods.
        id_share: Share of ID among all samples: the precision of a detector that knows nothing.

    """

    set: str
    nearness: Nearness
    curves: tuple[MethodCurve, ...]
    id_share: float


@dataclass(frozen=True, slots=True)
class CurveSeries:
    """Curves of methods.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        methods: Names of the rows.
        panels: One for each OOD set, near before far.

    """

    model: str
    title: str
    alt: str
    methods: tuple[str, ...]
    panels: tuple[CurvePanel, ...]


def curve_series(
    model: str, scores: Mapping[str, Mapping[str, _Scores]], nearness: Mapping[str, Nearness], *, points: int = 512
) -> CurveSeries:
    """Return ROC and precision-recall curves.

    Args:
        model: Name of the model.
        scores: Scores by method and set: ``test`` and the same ``ood_*`` for all methods.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        points: Points of a curve at most.

    Returns:
        What is drawn.

    Raises:
        EmptyDataError: If there are no ID scores, or none of an OOD set.

    Example:
        >>> scores = {"Energy": {"test": np.array([1.0, 2.0]), "ood_far": np.array([2.0, 3.0])}}
        >>> [panel] = curve_series("demo", scores, {"far": "far"}).panels
        >>> panel.curves[0].auroc, panel.curves[0].kept_id, panel.id_share
        (0.875, (0.0, 0.5, 1.0, 1.0), 0.5)

    """
    panels = []
    for name in ordered_sets(scores, nearness):
        pairs = {method: (by_set["test"], by_set[f"ood_{name}"]) for method, by_set in scores.items()}
        inside, outside = next(iter(pairs.values()))
        panel = CurvePanel(
            set=name,
            nearness=nearness[name],
            curves=tuple(_curve(method, *pair, points) for method, pair in pairs.items()),
            id_share=len(inside) / (len(inside) + len(outside)),
        )
        panels.append(panel)
    means = [
        f"{method_label(method)} {percent(fmean(panel.curves[column].auroc for panel in panels))}"
        for column, method in enumerate(scores)
    ]
    parts = [
        f"{set_title(panel.set, panel.nearness)}: "
        + ", ".join(
            f"{method_label(each.method)} AUROC {percent(each.auroc)}, AUPR {percent(each.aupr)}"
            for each in panel.curves
        )
        for panel in panels
    ]
    return CurveSeries(
        model=model,
        title=f"AUROC, mean of {count_of_sets(len(panels))}: {listed(means[::-1])}",
        alt=f"ROC and precision-recall curves, ID as the positive class. {'; '.join(parts)}.",
        methods=tuple(scores),
        panels=tuple(panels),
    )


def _curve(method: str, inside: _Scores, outside: _Scores, most: int) -> MethodCurve:
    whole = precision_points(inside, outside)
    roc, precision = thinned(roc_points(inside, outside), most), thinned(whole, most)
    return MethodCurve(
        method=method,
        kept_ood=_values(roc.x),
        kept_id=_values(roc.y),
        auroc=area_under_roc(inside, outside),
        recall=_values(precision.x),
        precision=_values(precision.y),
        aupr=_step_area(whole),
    )


def _step_area(curve: Points) -> float:
    return float((np.diff(curve.x) * curve.y[1:]).sum())


def _values(array: _Scores) -> tuple[float, ...]:
    return tuple(array.tolist())

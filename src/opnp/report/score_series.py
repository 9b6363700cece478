"""Data of the figures of scores: larger = more OOD, exact with ties, ID as the positive class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from opnp.errors import EmptyDataError, OptionError
from opnp.report.palette import Role
from opnp.report.record_series import Series
from opnp.report.results import Scores
from opnp.report.wording import brief_percent, count_of_sets, listed, method_label, percent, set_title
from opnp.values.figures import Nearness

__all__ = [
    "CurvePanel",
    "CurveSeries",
    "MethodCurve",
    "Points",
    "ScorePanel",
    "ScoreSeries",
    "area_under_roc",
    "curve_role",
    "curve_series",
    "keeping_threshold",
    "ordered_sets",
    "precision_points",
    "roc_points",
    "score_series",
    "thinned",
]

_BINS = 60
_TAIL = 0.0005

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Points:
    """Points of a curve.

    Attributes:
        x: Abscissae, ascending, shape ``(points,)``.
        y: Ordinates, shape ``(points,)``.

    """

    x: _Array
    y: _Array


def keeping_threshold(id_scores: _Array, keep: float) -> float:
    """Return the smallest ID score that at least the share `keep` of the ID scores do not exceed.

    An input is kept where its score does not exceed the threshold. It is that of `opnp.core.fpr_at_tpr`.

    Args:
        id_scores: _Array of ID samples, shape ``(n,)``.
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


def roc_points(id_scores: _Array, ood_scores: _Array) -> Points:
    """Return the ROC curve: share of OOD kept (x), share of ID kept (y), one point for each threshold.

    Samples with equal scores pass a threshold together, so that ties become slanted lines and the area under straight
    lines between the points is the AUROC.

    Args:
        id_scores: _Array of ID samples, shape ``(n,)``.
        ood_scores: _Array of OOD samples, shape ``(m,)``.

    Returns:
        The points, from (0, 0) to (1, 1).

    Example:
        >>> curve = roc_points(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
        >>> curve.x.tolist(), curve.y.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])

    """
    kept_id, kept_ood = _kept(id_scores, ood_scores)
    return Points(np.append(0.0, kept_ood / len(ood_scores)), np.append(0.0, kept_id / len(id_scores)))


def precision_points(id_scores: _Array, ood_scores: _Array) -> Points:
    """Return the precision-recall curve, ID positive: share of ID kept (x), share of ID among what is kept (y).

    The area of steps that hold each precision back to the recall before it, from 0 on, is the average precision. The
    first point stands at recall 0 with the precision of the second.

    Args:
        id_scores: _Array of ID samples, shape ``(n,)``.
        ood_scores: _Array of OOD samples, shape ``(m,)``.

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


def area_under_roc(id_scores: _Array, ood_scores: _Array) -> float:
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


def _kept(id_scores: _Array, ood_scores: _Array) -> tuple[_Array, _Array]:
    """Return how many ID and how many OOD samples are kept at each distinct score, in ascending order, float64."""
    if len(id_scores) == 0 or len(ood_scores) == 0:
        raise EmptyDataError("A curve needs at least one ID score and one OOD score.")
    levels = np.unique(np.concatenate([id_scores, ood_scores]))
    counts = [np.searchsorted(np.sort(each), levels, side="right") for each in (id_scores, ood_scores)]
    return counts[0].astype(np.float64), counts[1].astype(np.float64)


@dataclass(frozen=True, slots=True)
class ScorePanel:
    """ID against one OOD set, by one method.

    Attributes:
        method: Name of the row.
        set: Name of the OOD set, without ``ood_``.
        nearness: ``near`` or ``far``.
        edges: Edges of the bins in units of the score, the same in all panels of a method. The outermost bins hold
            what lies beyond them too: one in 2000 of a set at most, and scores of +inf.
        id_counts: ID samples by bin.
        ood_counts: OOD samples by bin.
        threshold: Score up to which inputs are kept; the last edge where that is +inf.
        kept_ood: Share of OOD samples that are kept there.

    """

    method: str
    set: str
    nearness: Nearness
    edges: tuple[float, ...]
    id_counts: tuple[int, ...]
    ood_counts: tuple[int, ...]
    threshold: float
    kept_ood: float

    @property
    def id_shares(self) -> tuple[float, ...]:
        """Share of the ID samples by bin."""
        return tuple(count / sum(self.id_counts) for count in self.id_counts)

    @property
    def ood_shares(self) -> tuple[float, ...]:
        """Share of the OOD samples by bin."""
        return tuple(count / sum(self.ood_counts) for count in self.ood_counts)


@dataclass(frozen=True, slots=True)
class ScoreSeries(Series):
    """Score histograms, ID against each OOD set, method beside method: the paper's Figure 5.

    Attributes:
        keep: Share of ID that is kept at the thresholds.
        methods: Names of the rows, in the order of the columns.
        sets: Names of the OOD sets, in the order of the rows: near before far.
        panels: One for each set and method, set after set.

    """

    keep: float
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    panels: tuple[ScorePanel, ...]

    def panel(self, name: str, method: str) -> ScorePanel:
        """Return the panel of an OOD set and a method."""
        return self.panels[self.sets.index(name) * len(self.methods) + self.methods.index(method)]


def score_series(
    model: str,
    scores: Mapping[str, Scores],
    nearness: Mapping[str, Nearness],
    *,
    keep: float = 0.95,
    bins: int = _BINS,
) -> ScoreSeries:
    """Return histograms of scores.

    Args:
        model: Name of the model.
        scores: Scores by method and set: ``test`` and the same ``ood_*`` for all methods.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        keep: Share of ID to keep, in (0, 1).
        bins: Bins of a histogram.

    Returns:
        What is drawn.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no ID scores, or no OOD set that every method has scores for.

    Example:
        >>> scores = {"Energy": {"test": np.array([1.0, 2.0]), "ood_far": np.array([2.0, 3.0])}}
        >>> [panel] = score_series("demo", scores, {"far": "far"}, bins=2).panels
        >>> panel.id_counts, panel.ood_counts, panel.threshold, panel.kept_ood
        ((1, 1), (0, 2), 2.0, 0.5)

    """
    names = ordered_sets(scores, nearness)
    if not names:
        raise EmptyDataError("There is no OOD set that every method has scores for: a histogram needs one.")
    edges = {method: _edges(list(by_set.values()), bins) for method, by_set in scores.items()}
    panels = []
    for name in names:
        for method, by_set in scores.items():
            inside, outside = by_set["test"], by_set[f"ood_{name}"]
            threshold = keeping_threshold(inside, keep)
            panel = ScorePanel(
                method=method,
                set=name,
                nearness=nearness[name],
                edges=tuple(edges[method].tolist()),
                id_counts=_counts(inside, edges[method]),
                ood_counts=_counts(outside, edges[method]),
                threshold=float(edges[method][-1]) if np.isinf(threshold) else threshold,
                kept_ood=float(np.mean(outside <= threshold)),
            )
            panels.append(panel)
    methods = tuple(scores)
    means = [
        f"{method_label(method)} {percent(fmean(panel.kept_ood for panel in panels if panel.method == method))}"
        for method in methods
    ]
    return ScoreSeries(
        model=model,
        title=f"OOD kept where {brief_percent(keep)} of ID is kept, mean of {count_of_sets(len(names))}: "
        f"{listed(means[::-1])}",
        alt=_alt(panels, keep),
        keep=keep,
        methods=methods,
        sets=tuple(names),
        panels=tuple(panels),
    )


def ordered_sets(scores: Mapping[str, Scores], nearness: Mapping[str, Nearness]) -> list[str]:
    """Return the OOD sets that every method has scores for, near before far, without ``ood_``."""
    known = [name for name in nearness if all(f"ood_{name}" in by_set for by_set in scores.values())]
    return sorted(known, key=lambda name: (nearness[name] != "near", name))


def _edges(arrays: Sequence[_Array], bins: int) -> _Array:
    finite = [each[np.isfinite(each)] for each in arrays]
    low = min((float(np.quantile(each, _TAIL, method="lower")) for each in finite if len(each)), default=0.0)
    high = max((float(np.quantile(each, 1 - _TAIL, method="higher")) for each in finite if len(each)), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _counts(values: _Array, edges: _Array) -> tuple[int, ...]:
    return tuple(np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist())


def _alt(panels: Sequence[ScorePanel], keep: float) -> str:
    sets = dict.fromkeys(panel.set for panel in panels)
    parts = [
        f"{set_title(name, next(panel.nearness for panel in panels if panel.set == name))}: "
        + ", ".join(f"{method_label(panel.method)} {percent(panel.kept_ood)}" for panel in panels if panel.set == name)
        for name in sets
    ]
    return f"Histograms of scores, ID against OOD. Share of OOD kept where {brief_percent(keep)} of ID is kept: " + (
        "; ".join(parts) + "."
    )


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
class CurveSeries(Series):
    """ROC and precision-recall curves of methods, OOD set by OOD set.

    Attributes:
        methods: Names of the rows.
        panels: One for each OOD set, near before far.

    """

    methods: tuple[str, ...]
    panels: tuple[CurvePanel, ...]


def curve_series(
    model: str, scores: Mapping[str, Scores], nearness: Mapping[str, Nearness], *, points: int = 512
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


def _curve(method: str, inside: _Array, outside: _Array, most: int) -> MethodCurve:
    whole = precision_points(inside, outside)
    roc, precision = thinned(roc_points(inside, outside), most), thinned(whole, most)
    return MethodCurve(
        method=method,
        kept_ood=tuple(roc.x.tolist()),
        kept_id=tuple(roc.y.tolist()),
        auroc=area_under_roc(inside, outside),
        recall=tuple(precision.x.tolist()),
        precision=tuple(precision.y.tolist()),
        aupr=float((np.diff(whole.x) * whole.y[1:]).sum()),
    )


def curve_role(column: int, methods: int) -> Role:
    """Return the role of a curve: the last method is the chosen one, the others stand beside it."""
    return "chosen" if column == methods - 1 else "baseline"

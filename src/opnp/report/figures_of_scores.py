"""Figures of scores: histograms with the threshold, ROC and precision-recall curves. ID is the positive class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Self

import altair as alt
import numpy as np
from numpy.typing import NDArray

from opnp.errors import EmptyDataError
from opnp.report.explorer import keeping_threshold, ordered_sets
from opnp.report.panels import (
    BLUE,
    COLORS,
    DASHES,
    GREY,
    VERMILLION,
    Drag,
    Figure,
    Follow,
    Panel,
    Quantity,
    Role,
    data,
    diagonal,
    legend_of,
    number,
    parameter,
    parameter_name,
    percentages,
    steps,
    tips,
)
from opnp.report.results import Scores
from opnp.report.wording import brief_percent, count_of_sets, listed, method_label, percent, set_title
from opnp.values.figures import Nearness

__all__ = ["Curve", "curves_figure", "score_edges", "scores_figure"]

_BINS = 60
_POINTS = 256
_TAIL = 0.0005

_Array = NDArray[np.float64]
_Marks = Mapping[str, Mapping[Quantity, float]]


def scores_figure(
    scores: Mapping[str, Scores], nearness: Mapping[str, Nearness], *, keep: float = 0.95, bins: int = _BINS
) -> Figure:
    """Return histograms of scores, ID against each OOD set, method beside method: the paper's Figure 5.

    The outermost bins hold what lies beyond them too: one in 2000 of a set at most, and scores of +inf.

    Args:
        scores: Scores by method and set: ``test`` and the same ``ood_*`` for all methods.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        keep: Share of ID to keep at the threshold, in (0, 1).
        bins: Bins of a histogram.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no ID scores, or no OOD set that every method has scores for.

    """
    sets = ordered_sets(scores, nearness)
    if not sets:
        raise EmptyDataError("There is no OOD set that every method has scores for: a histogram needs one.")
    thresholds = {method: keeping_threshold(by_set["test"], keep) for method, by_set in scores.items()}
    kept = {
        method: [float(np.mean(by_set[f"ood_{name}"] <= thresholds[method])) for name in sets]
        for method, by_set in scores.items()
    }
    edges = {method: score_edges(list(by_set.values()), bins) for method, by_set in scores.items()}
    titles = [set_title(name, nearness[name]) for name in sets]
    panels = [
        _histogram(
            method, name, by_set, edges[method], title=titles[row], marks=(thresholds[method], kept[method][row])
        )
        for row, name in enumerate(sets)
        for method, by_set in scores.items()
    ]
    means = [f"{method_label(method)} {percent(fmean(shares))}" for method, shares in kept.items()]
    parts = [
        f"{title}: " + ", ".join(f"{method_label(method)} {percent(shares[row])}" for method, shares in kept.items())
        for row, title in enumerate(titles)
    ]
    kept_text = f"kept where {brief_percent(keep)} of ID is kept"
    return Figure(
        "figure-5-scores",
        "Scores of ID and OOD",
        f"OOD {kept_text}, mean of {count_of_sets(len(sets))}: {listed(means[::-1])}",
        f"Histograms of scores, ID against OOD. Share of OOD {kept_text}: {'; '.join(parts)}.",
        tuple(panels),
        columns=len(scores),
    )


def _histogram(
    method: str, name: str, scores: Scores, edges: _Array, *, title: str, marks: tuple[float, float]
) -> Panel:
    """Return one histogram; `marks` are the threshold and the share of OOD kept there."""
    inside, outside = (
        [{**row, "set": label} for row in steps(edges.tolist(), y=percentages(_shares(scores[each], edges)))]
        for label, each in (("ID", "test"), ("OOD", f"ood_{name}"))
    )
    x = alt.X("x:Q", title=f"{method_label(method)} score (larger: more OOD)")
    x = x.scale(domain=[inside[0]["x"], inside[-1]["x2"]], nice=False, clamp=True)
    y = alt.Y("y:Q", title="samples (%)", stack=None).scale(domainMin=0)
    color = legend_of("set", {"ID": BLUE, "OOD": VERMILLION})
    tooltip = tips(set="set", x="score from", x2="to", y="% of the set")
    bars = alt.Chart(data(inside + outside)).mark_bar(opacity=0.5, binSpacing=0)
    outlines = [
        alt.Chart(data(rows)).mark_line(interpolate="step-after", strokeDash=dash, strokeWidth=1.2)
        for rows, dash in ((inside, [1, 0]), (outside, DASHES["ood"]))
    ]
    threshold, kept = (parameter_name(what, method, name) for what in ("threshold", "kept_ood"))
    line = alt.XDatum(alt.ExprRef(threshold), type="quantitative")
    chart = alt.layer(
        bars.encode(x=x, x2="x2:Q", y=y, y2=alt.Y2Datum(0), color=color, tooltip=tooltip),
        *(line.encode(x=x, y=y, color=color) for line in outlines),
        alt.Chart(data([{}])).mark_rule(strokeWidth=1.8, strokeDash=[6, 3]).encode(x=line),
    ).properties(title=alt.Title(alt.ExprRef(f"{json.dumps(title)} + ': ' + format({kept}, '.1f') + ' % of OOD kept'")))
    chart = chart.add_params(parameter(threshold, min(marks[0], float(edges[-1]))), parameter(kept, 100 * marks[1]))
    follows = Follow(threshold, "threshold", method), Follow(kept, "kept_ood", method, name)
    return Panel(chart, 150, follows, Drag(method, name, "threshold"))


def score_edges(arrays: Sequence[_Array], bins: int) -> _Array:
    """Return the edges of bins that hold all scores of some sets but one in 2000 at either end.

    Example:
        >>> score_edges([np.array([1.0, 2.0]), np.array([2.0, 3.0, np.inf])], 2).tolist()
        [1.0, 2.0, 3.0]

    """
    finite = [each[np.isfinite(each)] for each in arrays]
    low = min((float(np.quantile(each, _TAIL, method="lower")) for each in finite if len(each)), default=0.0)
    high = max((float(np.quantile(each, 1 - _TAIL, method="higher")) for each in finite if len(each)), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _shares(values: _Array, edges: _Array) -> list[float]:
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    shares: list[float] = (counts / len(values)).tolist()
    return shares


@dataclass(frozen=True, eq=False, slots=True)
class Curve:
    """ROC and precision-recall curve of one method on one OOD set: points of `opnp.core.passed_counts`.

    Attributes:
        roc: Shares of OOD and of ID kept, shape ``(points, 2)``, from (0, 0) to (1, 1).
        precision: Share of ID kept, and share of ID among what is kept, shape ``(points, 2)``.
        auroc: Area under the whole ROC curve.
        aupr: Average precision of the whole curve.

    """

    roc: _Array
    precision: _Array
    auroc: float
    aupr: float

    @classmethod
    def of(cls, inside: _Array, outside: _Array, *, points: int = _POINTS) -> Self:
        """Return the curves of ID and OOD scores, of at most so many points.

        Example:
            >>> curve = Curve.of(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
            >>> curve.roc.tolist(), curve.auroc
            ([[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]], 0.875)

        """
        import torch  # here, for that results without scores are drawn without it

        from opnp.core import aupr, auroc, passed_counts

        tensors = torch.from_numpy(inside), torch.from_numpy(outside)
        kept_id, kept_ood = (counts.double().numpy() for counts in passed_counts(*tensors))
        precision = kept_id / (kept_id + kept_ood)
        roc = np.column_stack([np.append(0.0, kept_ood / len(outside)), np.append(0.0, kept_id / len(inside))])
        steps_of_precision = np.column_stack([roc[:, 1], np.append(precision[:1], precision)])
        return cls(
            _with_fewer_points(roc, points),
            _with_fewer_points(steps_of_precision, points),
            auroc(*tensors),
            aupr(*tensors),
        )


def _with_fewer_points(curve: _Array, most: int) -> _Array:
    """Return at most `most` points of a curve, evenly spread along its length, both ends among them.

    Between neighbours that stay, a monotone curve cannot leave their rectangle, so that the area of a ROC curve moves
    by no more than ``1 / most``, and by far less where the curve is smooth.
    """
    if len(curve) <= most:
        return curve
    length = np.append(0.0, np.abs(np.diff(curve, axis=0)).sum(axis=1).cumsum())
    index = np.unique(np.searchsorted(length, np.linspace(0, length[-1], most) * (1 - 1e-12)))
    index[-1] = len(length) - 1
    return curve[index]


def curves_figure(scores: Mapping[str, Scores], nearness: Mapping[str, Nearness], *, keep: float = 0.95) -> Figure:
    """Return ROC (left) and precision-recall curves (right), a row for each OOD set.

    Args:
        scores: Scores by method and set: ``test`` and the same ``ood_*`` for all methods.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        keep: Share of ID to keep at the points that are marked, in (0, 1).

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no ID scores, or none of an OOD set.

    """
    thresholds = {method: keeping_threshold(by_set["test"], keep) for method, by_set in scores.items()}
    panels, parts, aurocs = [], [], {method: list[float]() for method in scores}
    for name in ordered_sets(scores, nearness):
        pairs = {method: (by_set["test"], by_set[f"ood_{name}"]) for method, by_set in scores.items()}
        curves = {method: Curve.of(*pair) for method, pair in pairs.items()}
        kept = {method: [int((each <= thresholds[method]).sum()) for each in pair] for method, pair in pairs.items()}
        marks: _Marks = {
            method: {
                "kept_id": kept[method][0] / len(inside),
                "kept_ood": kept[method][1] / len(outside),
                "precision": kept[method][0] / sum(kept[method]),
            }
            for method, (inside, outside) in pairs.items()
        }
        title = set_title(name, nearness[name])
        inside, outside = next(iter(pairs.values()))
        id_share = len(inside) / (len(inside) + len(outside))
        panels.append(_roc(name, title, curves, marks))
        panels.append(_precision(name, title, curves, marks, id_share=id_share))
        texts = [
            f"{method_label(method)} AUROC {percent(curve.auroc)}, AUPR {percent(curve.aupr)}"
            for method, curve in curves.items()
        ]
        parts.append(f"{title}: {', '.join(texts)}")
        for method, curve in curves.items():
            aurocs[method].append(curve.auroc)
    means = [f"{method_label(method)} {percent(fmean(values))}" for method, values in aurocs.items()]
    return Figure(
        "curves",
        "ROC and precision-recall curves",
        f"AUROC, mean of {count_of_sets(len(parts))}: {listed(means[::-1])}",
        f"ROC and precision-recall curves, ID as the positive class. {'; '.join(parts)}.",
        tuple(panels),
    )


_AXES: Mapping[Quantity, str] = {
    "kept_ood": "OOD kept (%)",
    "kept_id": "ID kept (%)",
    "precision": "ID among the kept (%)",
}


def _roc(name: str, title: str, curves: Mapping[str, Curve], marks: _Marks) -> Panel:
    points = {method: curve.roc for method, curve in curves.items()}
    values = ", ".join(f"{method_label(method)} {percent(curve.auroc)}" for method, curve in curves.items())
    layers, follows = _layers(points, ("kept_ood", "kept_id"), name, "roc")
    chart = alt.layer(diagonal(), *layers).properties(title=alt.Title([title, f"AUROC: {values}"]))
    return _followed(chart, follows, marks, Drag(list(curves)[-1], name, "kept_ood", "kept_id"))


def _precision(name: str, title: str, curves: Mapping[str, Curve], marks: _Marks, *, id_share: float) -> Panel:
    points = {method: curve.precision for method, curve in curves.items()}
    level = alt.YDatum(number(100 * id_share), type="quantitative")
    ignorant = alt.Chart(data([{}])).mark_rule(color=GREY, strokeDash=[2, 3], strokeWidth=1).encode(y=level)
    values = ", ".join(f"{method_label(method)} {percent(curve.aupr)}" for method, curve in curves.items())
    layers, follows = _layers(points, ("kept_id", "precision"), name, "recall", interpolate="step-before")
    chart = alt.layer(ignorant, *layers).properties(title=alt.Title([title, f"AUPR: {values}"]))
    return _followed(chart, follows, marks, Drag(list(curves)[-1], name, "kept_id", "precision"))


def _layers(
    points: Mapping[str, _Array],
    axes: tuple[Quantity, Quantity],
    name: str,
    stem: str,
    *,
    interpolate: Literal["linear", "step-before"] = "linear",
) -> tuple[list[alt.Chart], tuple[Follow, ...]]:
    """Return the curves of some methods, a mark on each that follows the threshold, and what these marks follow."""
    chosen = list(points)[-1]
    roles: dict[str, Role] = {method_label(each): "chosen" if each == chosen else "baseline" for each in points}
    color = legend_of("method", roles)
    x, y = (
        channel(f"{axis}:Q", title=_AXES[quantity]).scale(domain=[0, 100])
        for channel, axis, quantity in zip((alt.X, alt.Y), "xy", axes, strict=True)
    )
    dash = alt.StrokeDash("method:N", title=None)
    dash = dash.scale(domain=list(roles), range=[DASHES.get(role, [1, 0]) for role in roles.values()])
    layers, follows = [], []
    for method, curve in points.items():
        label = method_label(method)
        columns = (percentages(values) for values in curve.T.tolist())
        rows = [{"x": across, "y": up, "method": label} for across, up in zip(*columns, strict=True)]
        tooltip = tips(method="method", x=_AXES[axes[0]], y=_AXES[axes[1]])
        line = alt.Chart(data(rows)).mark_line(interpolate=interpolate, strokeWidth=2, tooltip=True)
        layers.append(line.encode(x=x, y=y, color=color, strokeDash=dash, order=alt.value(0), tooltip=tooltip))
        names = [parameter_name(quantity, stem, method, name) for quantity in axes]
        follows += [
            Follow(each, q, method, "" if q == "kept_id" else name) for each, q in zip(names, axes, strict=True)
        ]
        at = [
            channel(alt.ExprRef(each), type="quantitative")
            for channel, each in zip((alt.XDatum, alt.YDatum), names, strict=True)
        ]
        mark = alt.Chart(data([{}])).mark_point(size=80, filled=True, opacity=1, color=COLORS[roles[label]])
        layers.append(mark.encode(x=at[0], y=at[1]))
    return layers, tuple(follows)


def _followed(chart: alt.LayerChart | alt.FacetChart, follows: tuple[Follow, ...], marks: _Marks, drag: Drag) -> Panel:
    parameters = (parameter(each.parameter, 100 * marks[each.method][each.quantity]) for each in follows)
    return Panel(chart.add_params(*parameters), 220, follows, drag)

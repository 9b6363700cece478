"""Figures for pages: from what is drawn to a figure of plotly, as JSON values; and the script that draws it."""

import math
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

from opnp.errors import MissingExtraError
from opnp.report.page_panels import REFERENCE_LINE, PageFigure, Panels, line_trace, rounded
from opnp.report.palette import GREEN, HEAT, ROLES, VERMILLION, Role
from opnp.report.record_series import (
    CalibrationPanel,
    CalibrationSeries,
    PruningSeries,
    RankingSeries,
    SensitivityPanel,
    SensitivitySeries,
    Series,
)
from opnp.report.score_series import CurvePanel, CurveSeries, ScorePanel, ScoreSeries, curve_role
from opnp.report.sweep_series import METRICS, SIDES, GridPanel, GridSeries, Metric, RatioPanel, RatioSeries
from opnp.report.wording import brief_percent, method_label, percent, ratio_text, set_title

__all__ = ["page_figure", "plotly_script"]

_ROW = 18
"""Height of a method in the ranking, in pixels."""
_LOG = {"type": "log", "dtick": 1}


def page_figure(series: Series) -> PageFigure:
    """Return a figure of plotly as values that become JSON, ``data`` and ``layout``.

    It has no template: a page gives it one of `PAGE_TEMPLATES`, and another when the theme changes. Its title and its
    text for readers who do not see it are `series.title` and `series.alt`; they are no part of it.

    Args:
        series: What is drawn.

    Returns:
        The figure. ``layout.meta.min_width`` is the width in pixels from which on it can be read.

    """
    return _DRAWERS[type(series)](series)


def plotly_script() -> str:
    """Return plotly.js, to be put into a page: it draws without a network.

    Raises:
        MissingExtraError: If plotly is not installed.

    """
    try:
        script: str = import_module("plotly.offline").get_plotlyjs()
    except ImportError as error:
        raise MissingExtraError("Pages need plotly, which is not installed: `pip install 'opnp[report]'`.") from error
    return script


def sensitivity_page(series: SensitivitySeries) -> PageFigure:
    """Return the histograms of sensitivities: weights left, neurons right."""
    panels = Panels(1, len(series.panels), 240, gap=0.14)
    shown: set[str] = set()
    for column, panel in enumerate(series.panels):
        _sensitivities(panels, column, panel, shown)
        y = {"title": {"text": f"{panel.name}{', log scale' if panel.is_log else ''}"}}
        panels.axes(
            0,
            column,
            x={"range": [0, 1], "title": {"text": f"sensitivity / maximum ({panel.picture.maximum:.3g})"}},
            y={**y, **_LOG, "range": [math.log10(0.5), math.log10(2.5 * max(panel.picture.total))]}
            if panel.is_log
            else {**y, "rangemode": "tozero"},
            title=f"{panel.name}: {panel.removed_text}",
        )
        panels.line(0, column, x=panel.picture.mean, dash="dash")
        places = {"xref": f"x{column + 1 if column else ''}", "yref": "paper", "xanchor": "left", "yanchor": "top"}
        panels.note(title=f"mean {panel.picture.mean:.3f}", x=panel.picture.mean, y=1, xshift=3, **places)
    return panels.figure(min_width=640, barmode="overlay", bargap=0)


def _sensitivities(panels: Panels, column: int, panel: SensitivityPanel, shown: set[str]) -> None:
    middles = rounded([(left + right) / 2 for left, right in pairwise(panel.picture.edges)])
    parts: tuple[tuple[Role, str, tuple[int, ...]], ...] = (
        ("kept", "all", panel.picture.total),
        ("lowest", "lowest, removed", panel.picture.lowest),
        ("highest", "highest, removed", panel.picture.highest),
    )
    for role, word, counts in parts:
        if not any(counts):
            continue
        look = ROLES[role]
        marker: dict[str, Any] = {"color": look.color, "opacity": 0.5 if role == "kept" else 1}
        if look.hatch:
            marker["pattern"] = {"shape": look.hatch, "fgcolor": look.color, "bgcolor": "rgba(0,0,0,0)", "size": 5}
            marker["line"] = {"color": look.color, "width": 0.5}
        trace = {
            "type": "bar",
            "name": word,
            "legendgroup": role,
            "showlegend": role not in shown,
            "x": middles,
            "y": [count or None for count in counts],
            "marker": marker,
            "hovertemplate": f"%{{y}} {panel.name} at %{{x:.3f}}, {word}<extra></extra>",
        }
        shown.add(role)
        panels.trace(0, column, trace)


def pruning_page(series: PruningSeries) -> PageFigure:
    """Return weights (left) and neurons (right) before and after, with their sensitivities below."""
    panels = Panels(2, 2, (200, 130), gap=0.14)
    _weights(panels, series)
    _neurons(panels, series)
    return panels.figure(min_width=640)


def _weights(panels: Panels, series: PruningSeries) -> None:
    weights = series.weights
    edges = weights.edges
    middles = rounded([(left + right) / 2 for left, right in pairwise(edges)])
    parts: tuple[tuple[Role, tuple[int, ...]], ...] = (("before", weights.before), ("after", weights.after))
    for role, counts in parts:
        trace = line_trace(role, has_marks=False)
        trace |= {"x": middles, "y": list(counts), "name": role, "legendgroup": role}
        trace["line"] = {**trace["line"], "shape": "hvh"}
        if role == "after":
            trace["fill"] = "tozeroy"
        words = f"%{{y}} weights of about %{{x:.3f}}, {role}<extra></extra>"
        panels.trace(0, 0, {**trace, "hovertemplate": words})
    panels.axes(0, 0, x={}, y={"title": {"text": "weights"}, "rangemode": "tozero"}, title="weights")
    sensitivity = {**line_trace("kept"), "x": middles, "y": rounded(weights.sensitivity), "showlegend": False}
    sensitivity["marker"] = {**sensitivity["marker"], "size": 4}
    words = "weights of about %{x:.3f}: mean sensitivity %{y:.3f}<extra></extra>"
    panels.trace(1, 0, {**sensitivity, "hovertemplate": words})
    y = {"title": {"text": "sensitivity / max."}, "rangemode": "tozero"}
    panels.axes(1, 0, x={"title": {"text": "value of the weight"}}, y=y)


def _neurons(panels: Panels, series: PruningSeries) -> None:
    neurons = series.neurons
    ranks = [rank + 1 for rank in neurons.ranks]
    parts: tuple[tuple[Role, tuple[float, ...]], ...] = (("before", neurons.norm_before), ("after", neurons.norm_after))
    for role, norms in parts:
        trace = line_trace(role, has_marks=False, width=1.5)
        words = f"neuron of rank %{{x}}: norm %{{y:.3f}} {role}<extra></extra>"
        trace |= {"x": ranks, "y": rounded(norms), "showlegend": False, "legendgroup": role, "hovertemplate": words}
        panels.trace(0, 1, trace)
    below = {**line_trace("kept", has_marks=False), "x": ranks, "y": rounded(neurons.sensitivity), "showlegend": False}
    panels.trace(1, 1, {**below, "hovertemplate": "neuron of rank %{x}: sensitivity %{y:.3f}<extra></extra>"})
    removed = f"{neurons.removed_lowest} lowest, {neurons.removed_highest} highest removed"
    x = {"range": [0, neurons.neurons + 1]}
    y = {"title": {"text": "norm of its weights"}, "rangemode": "tozero"}
    panels.axes(0, 1, x=x, y=y, title=f"neurons: {removed}")
    y = {"title": {"text": "sensitivity / max."}, "rangemode": "tozero"}
    panels.axes(1, 1, x={**x, "title": {"text": "rank by sensitivity"}}, y=y)
    roles: tuple[Role, Role] = ("lowest", "highest")
    for (first, past), role in zip(series.removed_ranks, roles, strict=True):
        if past > first:
            for row in (0, 1):
                look = {"fillcolor": ROLES[role].color, "opacity": 0.25, "line": {"width": 0}, "layer": "below"}
                panels.box(row, 1, (first + 0.5, past + 0.5, 0, 0), **look)


def ratios_page(series: RatioSeries) -> PageFigure:
    """Return FPR95 (left) and AUROC (right) against each ratio, one ratio a row."""
    panels = Panels(len(series.panels), 2, 170)
    for row, panel in enumerate(series.panels):
        for column, metric in enumerate(METRICS):
            _ratio(panels, row, column, panel, metric)
            places, texts = zip(*panel.ticks, strict=True)
            chosen = f", {panel.chosen_text}" if panel.chosen_text else ""
            panels.axes(
                row,
                column,
                x={
                    "tickvals": list(places),
                    "ticktext": list(texts),
                    "title": {"text": f"share of {panel.axis_text}{chosen}"},
                },
                y={"title": {"text": f"{metric.upper()} (%)"}},
                title=f"rho_{panel.ratio}",
            )
    return panels.figure(min_width=600)


def _ratio(panels: Panels, row: int, column: int, panel: RatioPanel, metric: Metric) -> None:
    places = rounded(panel.position(value) for value in panel.values)
    is_first = (row, column) == (0, 0)
    for line in panel.lines:
        role = line.nearness
        words = f"rho_{panel.ratio} = %{{customdata}}: {role} {metric.upper()} %{{y:.2f}} %<extra></extra>"
        trace = {**line_trace(role), "x": places, "y": rounded(line.values(metric), 100), "name": f"{role} OOD"}
        trace |= {
            "legendgroup": role,
            "showlegend": is_first,
            "customdata": list(panel.values),
            "hovertemplate": words,
        }
        panels.trace(row, column, trace)
        energy = 100 * getattr(line.energy, metric)
        reference = {
            "type": "scatter",
            "mode": "lines",
            "x": rounded([panel.position(panel.values[0]), panel.position(panel.values[-1])]),
            "y": rounded([energy, energy]),
            "name": f"Energy, {role}",
            "legendgroup": f"energy-{role}",
            "showlegend": is_first,
            "line": {"color": ROLES[role].color, "dash": "dash" if role == "far" else "dot", "width": 1.3},
            "hovertemplate": f"Energy, {role}: %{{y:.2f}} %<extra></extra>",
        }
        panels.trace(row, column, reference)
    if panel.chosen is not None:
        panels.line(row, column, x=panel.position(panel.chosen), color=GREEN, width=3)


def grid_page(series: GridSeries) -> PageFigure:
    """Return heat maps over two ratios: AUROC above, FPR95 below, near left, far right."""
    columns = len({panel.nearness for panel in series.panels})
    panels = Panels(len(series.panels) // columns, columns, 30 * len(series.y_values) + 20)
    for place, panel in enumerate(series.panels):
        row, column = divmod(place, columns)
        _heat(panels, row, column, panel, series)
        panels.axes(
            row,
            column,
            x={"title": {"text": f"rho_{series.x}"}, "type": "category", "showline": False, "ticks": ""},
            y={"title": {"text": f"rho_{series.y}"}, "type": "category", "showline": False, "ticks": ""},
            title=f"{panel.nearness} {panel.metric.upper()} (%); Energy {100 * panel.energy:.1f}",
        )
    words = series.frames.replace("framed", "orange frame").replace("dashed", "dashed frame")
    panels.note(title=words, x=0, y=0, xanchor="left", yanchor="top", yshift=-54)
    return panels.figure(min_width=320 * columns)


def _heat(panels: Panels, row: int, column: int, panel: GridPanel, series: GridSeries) -> None:
    values = [rounded(line, 100) for line in panel.values]
    trace = {
        "type": "heatmap",
        "x": [ratio_text(value) for value in series.x_values],
        "y": [ratio_text(value) for value in series.y_values],
        "z": values,
        "colorscale": [[0, HEAT[0]], [1, HEAT[1]]],
        "reversescale": panel.metric == "fpr95",
        "showscale": False,
        "texttemplate": "%{z:.1f}",
        "textfont": {"color": "#000000"},
        "hoverongaps": False,
        "hovertemplate": f"rho_{series.x} = %{{x}}, rho_{series.y} = %{{y}}: %{{z:.2f}} %<extra></extra>",
    }
    panels.trace(row, column, trace)
    up, across = panel.best
    frame = across - 0.47, across + 0.47, up - 0.46, up + 0.46
    panels.box(row, column, frame, line={"color": VERMILLION, "width": 3})
    if series.chosen is not None:
        x, y = series.chosen
        for color, dash, width in (("#ffffff", "solid", 4), ("#000000", "dash", 2)):
            look = {"color": color, "dash": dash, "width": width}
            panels.box(row, column, (x - 0.42, x + 0.42, y - 0.4, y + 0.4), line=look)


def calibration_page(series: CalibrationSeries) -> PageFigure:
    """Return confidence histograms above reliability diagrams, before left, after right."""
    panels = Panels(2, len(series.panels), (110, 230))
    for column, panel in enumerate(series.panels):
        _reliability(panels, column, panel, is_last=column == len(series.panels) - 1)
        y = "samples (%)" if column == 0 else ""
        panels.axes(
            0,
            column,
            x={"range": [0, 100]},
            y={"range": [0, 100], "title": {"text": y}},
            title=f"{panel.name} {series.change}: ECE {percent(panel.figures.ece)}",
            is_bold=True,
        )
        panels.axes(
            1,
            column,
            x={"range": [0, 100], "title": {"text": "confidence (%)"}},
            y={"range": [0, 100], "title": {"text": "right answers (%)" if column == 0 else ""}},
            title=f"accuracy {percent(panel.figures.accuracy)}, mean confidence {percent(panel.mean_confidence)}",
        )
        panels.line(0, column, x=100 * panel.figures.accuracy, dash="solid")
        panels.line(0, column, x=100 * panel.mean_confidence, dash="dash")
        panels.line(1, column, **REFERENCE_LINE)
    return panels.figure(min_width=330 * len(series.panels), barmode="stack", bargap=0)


def _reliability(panels: Panels, column: int, panel: CalibrationPanel, *, is_last: bool) -> None:
    role: Role = "before" if panel.name == "before" else "after"
    middles = rounded([(left + right) / 2 for left, right in pairwise(panel.edges)], 100)
    fill = {"color": ROLES[role].color, "opacity": 0.75}
    panels.trace(
        0,
        column,
        {
            "type": "bar",
            "x": middles,
            "y": rounded(panel.shares, 100),
            "customdata": list(panel.figures.bin_count),
            "marker": fill,
            "showlegend": False,
            "hovertemplate": "confidence %{x:.0f} %: %{y:.2f} % of samples (%{customdata})<extra></extra>",
        },
    )
    gap = [
        None if confidence is None or right is None else confidence - right
        for confidence, right in zip(panel.confidence, panel.right, strict=True)
    ]
    common = {"type": "bar", "x": middles, "customdata": rounded(panel.confidence, 100)}
    panels.trace(
        1,
        column,
        {
            **common,
            "y": rounded(panel.right, 100),
            "name": f"right answers, {panel.name}",
            "marker": fill,
            "hovertemplate": "mean confidence %{customdata:.1f} %: %{y:.1f} % right<extra></extra>",
        },
    )
    look = ROLES["ood"]
    pattern = {"shape": "/", "fgcolor": look.color, "bgcolor": "rgba(0,0,0,0)", "size": 6}
    panels.trace(
        1,
        column,
        {
            **common,
            "y": rounded(gap, 100),
            "base": rounded(panel.right, 100),
            "name": "gap to the mean confidence",
            "legendgroup": "gap",
            "showlegend": is_last,
            "marker": {"color": look.color, "pattern": pattern, "line": {"color": look.color, "width": 1}},
            "hovertemplate": "gap %{y:.1f} points<extra></extra>",
        },
    )


def scores_page(series: ScoreSeries) -> PageFigure:
    """Return the histograms of scores: a row for each OOD set, a column for each method."""
    panels = Panels(len(series.sets), len(series.methods), 150)
    for row, name in enumerate(series.sets):
        for column, method in enumerate(series.methods):
            panel = series.panel(name, method)
            _histogram(panels, row, column, panel, is_first=(row, column) == (0, 0))
            is_last = row == len(series.sets) - 1
            panels.axes(
                row,
                column,
                x={"title": {"text": f"{method_label(method)} score" if is_last else ""}},
                y={"title": {"text": "samples (%)" if column == 0 else ""}, "rangemode": "tozero"},
                title=f"{set_title(name, panel.nearness)}: {percent(panel.kept_ood)} of OOD kept",
            )
            panels.line(row, column, x=panel.threshold, dash="dash")
    panels.data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [None],
            "y": [None],
            "name": f"threshold: {brief_percent(series.keep)} of ID is kept, left of it",
            "line": {"color": ROLES["before"].color, "dash": "dash", "width": 1.2},
        }
    )
    return panels.figure(min_width=330 * len(series.methods), barmode="overlay", bargap=0)


def _histogram(panels: Panels, row: int, column: int, panel: ScorePanel, *, is_first: bool) -> None:
    edges = panel.edges
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    sets: tuple[tuple[Role, tuple[float, ...]], ...] = (("id", panel.id_shares), ("ood", panel.ood_shares))
    for role, shares in sets:
        look = ROLES[role]
        marker: dict[str, Any] = {"color": look.color, "opacity": 1 if look.hatch else 0.55, "line": {"width": 0}}
        if look.hatch:
            marker["pattern"] = {"shape": look.hatch, "fgcolor": look.color, "bgcolor": "rgba(0,0,0,0)", "size": 5}
        panels.trace(
            row,
            column,
            {
                "type": "bar",
                "name": role.upper(),
                "legendgroup": role,
                "showlegend": is_first,
                "x": rounded(middles),
                "y": rounded(shares, 100),
                "width": float(f"{edges[1] - edges[0]:.5g}"),
                "marker": marker,
                "hovertemplate": f"{role.upper()}, score %{{x}}: %{{y:.2f}} %<extra></extra>",
            },
        )


def curves_page(series: CurveSeries) -> PageFigure:
    """Return ROC (left) and precision-recall curves (right): a row for each OOD set."""
    panels = Panels(len(series.panels), 2, 200)
    for row, panel in enumerate(series.panels):
        _curves(panels, row, panel, len(series.methods))
        is_last = row == len(series.panels) - 1
        name = set_title(panel.set, panel.nearness)
        for column, x, y, word in (
            (0, "OOD kept (%)", "ID kept (%)", "AUROC"),
            (1, "ID kept: recall (%)", "precision (%)", "AUPR"),
        ):
            values = [
                f"{method_label(each.method)} {percent(each.auroc if column == 0 else each.aupr)}"
                for each in panel.curves
            ]
            panels.axes(
                row,
                column,
                x={"title": {"text": x if is_last else ""}, "range": [0, 100]},
                y={"title": {"text": y}, "range": [0, 101]},
                title=f"{name}<br>{word}: {', '.join(values)}",
            )
        panels.line(row, 0, **REFERENCE_LINE)
        panels.line(row, 1, y=100 * panel.id_share, **REFERENCE_LINE)
    figure = panels.figure(min_width=600)
    figure["layout"]["margin"]["t"] += 16
    return figure


def _curves(panels: Panels, row: int, panel: CurvePanel, methods: int) -> None:
    for column, curve in enumerate(panel.curves):
        name = method_label(curve.method)
        look = line_trace(curve_role(column, methods), has_marks=False)
        common = {**look, "name": name, "legendgroup": name, "showlegend": False}
        roc = {"x": rounded(curve.kept_ood, 100), "y": rounded(curve.kept_id, 100)}
        words = f"{name}: %{{y:.1f}} % of ID and %{{x:.1f}} % of OOD kept<extra></extra>"
        panels.trace(row, 0, {**common, **roc, "showlegend": row == 0, "hovertemplate": words})
        words = f"{name}: of %{{x:.1f}} % of ID kept, precision %{{y:.1f}} %<extra></extra>"
        steps = {"x": rounded(curve.recall, 100), "y": rounded(curve.precision, 100)}
        panels.trace(row, 1, {**common, **steps, "line": {**look["line"], "shape": "vh"}, "hovertemplate": words})


def ranking_page(series: RankingSeries) -> PageFigure:
    """Return a dot plot: AUROC left, FPR95 right, the best method at the top."""
    methods = series.methods
    panels = Panels(1, 2, _ROW * len(methods) + 20, gap=0.04)
    names = [f"<b>{each.method}</b>" if place in series.marked else each.method for place, each in enumerate(methods)]
    places = list(range(len(methods)))
    for column, (metric, words) in enumerate((("auroc", "higher is better"), ("fpr95", "lower is better"))):
        for role in SIDES:
            values = series.values(role, metric)
            if all(value is None for value in values):
                continue
            trace = {**line_trace(role), "mode": "markers", "x": rounded(values, 100), "y": places}
            trace |= {
                "name": f"mean of the {role} OOD sets",
                "legendgroup": role,
                "showlegend": column == 0,
                "customdata": [each.method for each in methods],
                "hovertemplate": f"%{{customdata}}: {role} %{{x:.2f}} %<extra></extra>",
            }
            panels.trace(0, column, trace)
        y = {
            "range": [len(methods) - 0.4, -0.6],
            "tickvals": places,
            "ticktext": names,
            "ticks": "",
            "automargin": True,
        }
        y |= {"showticklabels": column == 0, "tickfont": {"size": 11}}
        panels.axes(0, column, x={"title": {"text": f"{metric.upper()} (%), {words}"}, "showgrid": True}, y=y)
        for place, mark in series.marked.items():
            look = {"fillcolor": ROLES[mark].color, "opacity": 0.2, "line": {"width": 0}, "layer": "below"}
            panels.box(0, column, (0, 1, place - 0.5, place + 0.5), **look, xref=f"x{'' if column == 0 else 2} domain")
    return panels.figure(min_width=640, margin_left=20)


_DRAWERS: dict[type, Callable[[Any], PageFigure]] = {
    CalibrationSeries: calibration_page,
    CurveSeries: curves_page,
    GridSeries: grid_page,
    PruningSeries: pruning_page,
    RankingSeries: ranking_page,
    RatioSeries: ratios_page,
    ScoreSeries: scores_page,
    SensitivitySeries: sensitivity_page,
}

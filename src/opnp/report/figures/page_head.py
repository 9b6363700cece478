"""Sensitivities of a head, and its weights and neurons before and after pruning, for pages."""

import math
from itertools import pairwise
from typing import Any

from opnp.report.figures.page_layout import PageFigure, Panels, line_trace, rounded
from opnp.report.palette import Role, style
from opnp.report.series.pruning_series import PruningSeries
from opnp.report.series.sensitivity_series import SensitivityPanel, SensitivitySeries

__all__ = ["pruning_page", "sensitivity_page"]

_LOG = {"type": "log", "dtick": 1}


def sensitivity_page(series: SensitivitySeries) -> PageFigure:
    """Return the histograms of sensitivities: weights left, neurons right."""
    panels = Panels(1, len(series.panels), 240, gap=0.14)
    shown: set[str] = set()
    for column, panel in enumerate(series.panels):
        _bars(panels, column, panel, shown)
        y = {"title": {"text": f"{panel.name}{', log scale' if panel.is_log else ''}"}}
        panels.axes(
            0,
            column,
            x={"range": [0, 1], "title": {"text": f"sensitivity / maximum ({panel.maximum:.3g})"}},
            y={**y, **_LOG, "range": [math.log10(0.5), math.log10(2.5 * max(panel.counts))]}
            if panel.is_log
            else {**y, "rangemode": "tozero"},
            title=f"{panel.name}: {panel.removed_text}",
        )
        panels.line(0, column, x=panel.mean, dash="dash")
        places = {"xref": f"x{column + 1 if column else ''}", "yref": "paper", "xanchor": "left", "yanchor": "top"}
        panels.note(title=f"mean {panel.mean:.3f}", x=panel.mean, y=1, xshift=3, **places)
    return panels.figure(min_width=640, barmode="overlay", bargap=0)


def _bars(panels: Panels, column: int, panel: SensitivityPanel, shown: set[str]) -> None:
    middles = rounded([(left + right) / 2 for left, right in pairwise(panel.edges)])
    parts: tuple[tuple[Role, str, tuple[int, ...]], ...] = (
        ("kept", "all", panel.counts),
        ("lowest", "lowest, removed", panel.lowest),
        ("highest", "highest, removed", panel.highest),
    )
    for role, word, counts in parts:
        if not any(counts):
            continue
        look = style(role)
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
                look = {"fillcolor": style(role).color, "opacity": 0.25, "line": {"width": 0}, "layer": "below"}
                panels.box(row, 1, (first + 0.5, past + 0.5, 0, 0), **look)

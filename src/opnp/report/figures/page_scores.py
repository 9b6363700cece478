"""Score histograms, and ROC and precision-recall curves, for pages."""

from itertools import pairwise
from typing import Any

from opnp.report.figures.page_layout import REFERENCE_LINE, PageFigure, Panels, line_trace, rounded
from opnp.report.figures.print_scores import curve_role
from opnp.report.palette import Role, style
from opnp.report.series.curve_series import CurvePanel, CurveSeries
from opnp.report.series.score_series import ScorePanel, ScoreSeries
from opnp.report.series.wording import brief_percent, method_label, percent, set_title

__all__ = ["curves_page", "scores_page"]


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
            "line": {"color": style("before").color, "dash": "dash", "width": 1.2},
        }
    )
    return panels.figure(min_width=330 * len(series.methods), barmode="overlay", bargap=0)


def _histogram(panels: Panels, row: int, column: int, panel: ScorePanel, *, is_first: bool) -> None:
    edges = panel.edges
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    sets: tuple[tuple[Role, tuple[float, ...]], ...] = (("id", panel.id_shares), ("ood", panel.ood_shares))
    for role, shares in sets:
        look = style(role)
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

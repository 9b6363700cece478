"""Confidence histogram and reliability diagram, for pages."""

from itertools import pairwise

from opnp.report.figures.page_layout import REFERENCE_LINE, PageFigure, Panels, rounded
from opnp.report.palette import Role, style
from opnp.report.series.calibration_series import CalibrationPanel, CalibrationSeries
from opnp.report.series.wording import percent

__all__ = ["calibration_page"]


def calibration_page(series: CalibrationSeries) -> PageFigure:
    """Return confidence histograms above reliability diagrams, before left, after right."""
    panels = Panels(2, len(series.panels), (110, 230))
    for column, panel in enumerate(series.panels):
        _bars(panels, column, panel, is_last=column == len(series.panels) - 1)
        y = "samples (%)" if column == 0 else ""
        panels.axes(
            0,
            column,
            x={"range": [0, 100]},
            y={"range": [0, 100], "title": {"text": y}},
            title=f"{panel.name} {series.change}: ECE {percent(panel.ece)}",
            is_bold=True,
        )
        panels.axes(
            1,
            column,
            x={"range": [0, 100], "title": {"text": "confidence (%)"}},
            y={"range": [0, 100], "title": {"text": "right answers (%)" if column == 0 else ""}},
            title=f"accuracy {percent(panel.accuracy)}, mean confidence {percent(panel.mean_confidence)}",
        )
        panels.line(0, column, x=100 * panel.accuracy, dash="solid")
        panels.line(0, column, x=100 * panel.mean_confidence, dash="dash")
        panels.line(1, column, **REFERENCE_LINE)
    return panels.figure(min_width=330 * len(series.panels), barmode="stack", bargap=0)


def _bars(panels: Panels, column: int, panel: CalibrationPanel, *, is_last: bool) -> None:
    role: Role = "before" if panel.name == "before" else "after"
    middles = rounded([(left + right) / 2 for left, right in pairwise(panel.edges)], 100)
    fill = {"color": style(role).color, "opacity": 0.75}
    panels.trace(
        0,
        column,
        {
            "type": "bar",
            "x": middles,
            "y": rounded(panel.shares, 100),
            "customdata": list(panel.counts),
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
    look = style("ood")
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

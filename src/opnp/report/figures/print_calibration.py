"""Confidence histogram and reliability diagram, for print."""

from typing import TYPE_CHECKING

import numpy as np

from opnp.report.figures.print_style import new_figure, print_style
from opnp.report.palette import GREY, Role, style
from opnp.report.series.calibration_series import CalibrationPanel, CalibrationSeries
from opnp.report.series.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_figure"]


def calibration_figure(series: CalibrationSeries) -> "Figure":
    """Return confidence histograms above reliability diagrams, before left, after right."""
    with print_style():
        figure = new_figure(3.9, series.title)
        count = len(series.panels)
        grid = figure.subplots(2, count, sharex=True, sharey="row", squeeze=False, height_ratios=(1, 2))
        for column, panel in enumerate(series.panels):
            role: Role = "before" if panel.name == "before" else "after"
            _confidence(grid[0, column], panel, role)
            grid[0, column].set_title(f"{panel.name} {series.change}: ECE {percent(panel.ece)}", fontweight="bold")
            _reliability(grid[1, column], panel, role)
        grid[0, 0].set_ylabel("samples (%)")
        grid[1, 0].set_ylabel("right answers (%)")
        grid[1, -1].legend(loc="upper left")
    return figure


def _confidence(axes: "Axes", panel: CalibrationPanel, role: Role) -> None:
    axes.stairs(
        100 * np.array(panel.shares), 100 * np.array(panel.edges), fill=True, color=style(role).color, alpha=0.7
    )
    lines = (panel.accuracy, "accuracy", "-"), (panel.mean_confidence, "mean confidence", "--")
    for value, word, dash in lines:
        axes.axvline(100 * value, color="black", linewidth=0.9, linestyle=dash, label=f"{word} {percent(value)}")
    axes.legend(loc="upper left", handlelength=2)


def _reliability(axes: "Axes", panel: CalibrationPanel, role: Role) -> None:
    left, right = np.array(panel.edges[:-1]), np.array(panel.edges[1:])
    middle, width = 50 * (left + right), 100 * (right - left)
    accuracy = np.array([np.nan if value is None else 100 * value for value in panel.right])
    confidence = np.array([np.nan if value is None else 100 * value for value in panel.confidence])
    axes.bar(middle, accuracy, width, facecolor=style(role).color, alpha=0.7, edgecolor="white", linewidth=0.5)
    axes.bar(
        middle,
        confidence - accuracy,
        width,
        bottom=accuracy,
        facecolor="none",
        edgecolor=style("ood").color,
        hatch="////",
        linewidth=0.6,
        label="gap to the mean confidence",
    )
    axes.axline((0, 0), (100, 100), color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated")
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence: largest probability (%)")

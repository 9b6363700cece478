"""Score histograms, and ROC and precision-recall curves, for print."""

from typing import TYPE_CHECKING

import numpy as np

from opnp.report.figures.print_style import bar_options, line_options, new_figure, print_style
from opnp.report.palette import GREY, Role, style
from opnp.report.series.curve_series import CurvePanel, CurveSeries
from opnp.report.series.score_series import ScorePanel, ScoreSeries
from opnp.report.series.wording import brief_percent, method_label, percent, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_role", "curves_figure", "scores_figure"]

_ROW = 1.25
_CURVE_ROW = 1.75


def scores_figure(series: ScoreSeries) -> "Figure":
    """Return the histograms of scores: a row for each OOD set, a column for each method."""
    with print_style():
        figure = new_figure(_ROW * len(series.sets) + 0.5, series.title)
        grid = figure.subplots(len(series.sets), len(series.methods), sharex="col", squeeze=False)
        for row, name in enumerate(series.sets):
            for column, method in enumerate(series.methods):
                _histogram(grid[row, column], series.panel(name, method), series.keep)
            grid[row, 0].set_ylabel("samples (%)")
        for column, method in enumerate(series.methods):
            grid[-1, column].set_xlabel(f"{method_label(method)} score (larger: more OOD)")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=2)
    return figure


def _histogram(axes: "Axes", panel: ScorePanel, keep: float) -> None:
    edges = np.array(panel.edges)
    inside, outside = 100 * np.array(panel.id_shares), 100 * np.array(panel.ood_shares)
    axes.stairs(inside, edges, fill=True, label="ID", **bar_options("id"))
    axes.stairs(outside, edges, fill=True, label="OOD", **bar_options("ood"))
    axes.stairs(outside, edges, color=style("ood").color, linewidth=1.0)
    label = f"threshold: {brief_percent(keep)} of ID is kept, left of it"
    axes.axvline(panel.threshold, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label=label)
    name = f"{method_label(panel.method)}, {set_title(panel.set, panel.nearness)}"
    axes.set_title(f"{name}: {percent(panel.kept_ood)} of OOD kept", fontsize=7.5)
    axes.margins(x=0)
    top = max(inside.max(), outside.max())
    axes.set_ylim(0, 1.08 * top)


def curves_figure(series: CurveSeries) -> "Figure":
    """Return ROC (left) and precision-recall curves (right): a row for each OOD set."""
    with print_style():
        figure = new_figure(_CURVE_ROW * len(series.panels) + 0.2, series.title)
        grid = figure.subplots(len(series.panels), 2, squeeze=False)
        for row, panel in enumerate(series.panels):
            _roc(grid[row, 0], panel)
            _precision(grid[row, 1], panel)
        grid[-1, 0].set_xlabel("OOD kept (%)")
        grid[-1, 1].set_xlabel("ID kept: recall (%)")
    return figure


def curve_role(column: int, methods: int) -> Role:
    """Return the role of a curve: the last method is the chosen one, the others stand beside it."""
    return "chosen" if column == methods - 1 else "baseline"


def _roc(axes: "Axes", panel: CurvePanel) -> None:
    axes.axline((0, 0), (100, 100), color=GREY, linewidth=0.6, linestyle=":")
    for column, curve in enumerate(panel.curves):
        axes.plot(
            100 * np.array(curve.kept_ood),
            100 * np.array(curve.kept_id),
            label=f"{method_label(curve.method)}: AUROC {percent(curve.auroc)}",
            **line_options(curve_role(column, len(panel.curves)), has_marks=False),
        )
    axes.set(xlim=(0, 100), ylim=(0, 101), ylabel="ID kept (%)", title=set_title(panel.set, panel.nearness))
    axes.legend(loc="lower right", handlelength=2.4)


def _precision(axes: "Axes", panel: CurvePanel) -> None:
    lowest = 100 * panel.id_share
    axes.axhline(lowest, color=GREY, linewidth=0.8, linestyle=":", label=f"share of ID: {percent(panel.id_share)}")
    for column, curve in enumerate(panel.curves):
        axes.step(
            100 * np.array(curve.recall),
            100 * np.array(curve.precision),
            where="pre",
            label=f"{method_label(curve.method)}: AUPR {percent(curve.aupr)}",
            **line_options(curve_role(column, len(panel.curves)), has_marks=False),
        )
    axes.set(xlim=(0, 100), ylim=(0, 101))
    axes.set_ylabel("ID among the kept:\nprecision (%)")
    axes.legend(loc="lower center", handlelength=2.4)

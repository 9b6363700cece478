"""Figures of a sweep for print: a metric against each ratio, and a heat map over two."""

from typing import TYPE_CHECKING, Any

import numpy as np

from opnp.report.figures.print_style import line_options, new_figure, print_style
from opnp.report.palette import GREEN, HEAT, Role, style
from opnp.report.series.grid_series import GridPanel, GridSeries
from opnp.report.series.ratio_series import Metric, RatioPanel, RatioSeries
from opnp.report.series.wording import METRIC_TITLES, ratio_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["grid_figure", "ratios_figure"]

_METRICS: tuple[Metric, ...] = ("fpr95", "auroc")
_SHORT = {"fpr95": "FPR95 (%)", "auroc": "AUROC (%)"}


def ratios_figure(series: RatioSeries) -> "Figure":
    """Return FPR95 (above) and AUROC (below) against each ratio."""
    with print_style():
        figure = new_figure(3.6, series.title)
        grid = figure.subplots(2, len(series.panels), sharex="col", sharey="row", squeeze=False)
        for row, metric in enumerate(_METRICS):
            for column, panel in enumerate(series.panels):
                _ratio(grid[row, column], panel, metric)
            grid[row, 0].set_ylabel(_SHORT[metric])
        for column, panel in enumerate(series.panels):
            _marks(grid[1, column], panel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=2.6)
    return figure


def _ratio(axes: "Axes", panel: RatioPanel, metric: Metric) -> None:
    places = [panel.position(value) for value in panel.values]
    for line in panel.lines:
        role: Role = "near" if line.nearness == "near" else "far"
        axes.plot(places, 100 * np.array(line.metric(metric)), label=f"{role} OOD", **line_options(role))
        axes.axhline(
            100 * line.energy(metric),
            color=style(role).color,
            linewidth=0.9,
            linestyle=(0, (5, 2)) if role == "far" else (0, (1, 1.5)),
            label=f"Energy, {role}",
        )
    if panel.chosen is not None:
        axes.axvline(panel.position(panel.chosen), color=GREEN, linewidth=2.4, alpha=0.5, label="chosen by OPNP")


def _marks(axes: "Axes", panel: RatioPanel) -> None:
    places, texts = zip(*panel.ticks, strict=True)
    axes.set_xticks(places, texts)
    kind = "weights" if panel.ratio.startswith("w") else "neurons"
    which = "lowest" if panel.ratio.endswith("min") else "highest"
    chosen = f"\n{panel.chosen_text}".replace(", ", ",\n") if panel.chosen_text else ""
    axes.set_xlabel(f"rho_{panel.ratio}: share of\n{kind}, {which}{chosen}")


def grid_figure(series: GridSeries) -> "Figure":
    """Return heat maps over two ratios: AUROC above, FPR95 below, near left, far right."""
    with print_style():
        columns = len({panel.nearness for panel in series.panels})
        rows = len(series.panels) // columns
        height = 0.27 * len(series.y_values) + 0.55
        figure = new_figure(rows * height + 0.4, series.title)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, panel in enumerate(series.panels):
            axes = grid[place // columns, place % columns]
            _heat(axes, panel, series)
        for axes in grid[-1]:
            axes.set_xlabel(f"rho_{series.x}")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"rho_{series.y}")
        grid[-1, -1].set_xlabel(f"rho_{series.x}\n{series.frames.replace('; ', chr(10))}")
    return figure


def _heat(axes: "Axes", panel: GridPanel, series: GridSeries) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    values = 100 * np.array([[np.nan if value is None else value for value in row] for row in panel.values])
    colors = LinearSegmentedColormap.from_list("heat", HEAT if panel.metric == "auroc" else HEAT[::-1])
    axes.imshow(values, cmap=colors, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7)
    row, column = panel.best
    frame: dict[str, Any] = {"fill": False, "linewidth": 1.6, "clip_on": False}
    axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, edgecolor=style("ood").color, **frame))
    if series.chosen is not None:
        place = series.chosen[0] - 0.44, series.chosen[1] - 0.42
        axes.add_patch(Rectangle(place, 0.88, 0.84, edgecolor="black", linestyle=(0, (2, 1.5)), **frame))
        axes.patches[-1].set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set_xticks(range(len(series.x_values)), [ratio_text(value) for value in series.x_values])
    axes.set_yticks(range(len(series.y_values)), [ratio_text(value) for value in series.y_values])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    metric = "AUROC" if panel.metric == "auroc" else METRIC_TITLES["fpr95"].split(":")[0]
    axes.set_title(f"{panel.nearness} {metric} (%); Energy {100 * panel.energy:.1f}")

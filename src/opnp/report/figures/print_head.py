"""Sensitivities of a head, and its weights and neurons before and after pruning, for print."""

from typing import TYPE_CHECKING

import numpy as np

from opnp.report.figures.print_style import bar_options, line_options, new_figure, only_whole_counts, print_style
from opnp.report.palette import GREY, Role, style
from opnp.report.series.pruning_series import PruningSeries
from opnp.report.series.sensitivity_series import SensitivityPanel, SensitivitySeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pruning_figure", "sensitivity_figure"]

_FILLED_EDGE = 0.4


def sensitivity_figure(series: SensitivitySeries) -> "Figure":
    """Return the histograms of sensitivities: weights left, neurons right."""
    with print_style():
        figure = new_figure(2.3, series.title)
        grid = figure.subplots(1, len(series.panels), squeeze=False)
        for axes, panel in zip(grid[0], series.panels, strict=True):
            _sensitivities(axes, panel)
        labelled = [axes.get_legend_handles_labels() for axes in grid[0]]
        by_label = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
        figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=4, handlelength=1.6)
    return figure


def _sensitivities(axes: "Axes", panel: SensitivityPanel) -> None:
    edges = np.array(panel.edges)
    lowest, highest = np.array(panel.lowest), np.array(panel.highest)
    floor = 0.5 if panel.is_log else 0
    axes.stairs(panel.counts, edges, fill=True, baseline=floor, label="kept", **bar_options("kept"))
    for counts, word, role in ((lowest, "lowest, removed", "lowest"), (highest, "highest, removed", "highest")):
        if counts.any():
            look: Role = "lowest" if role == "lowest" else "highest"
            shown = np.where(counts > 0, counts, np.nan)
            axes.bar(
                edges[:-1],
                shown - floor,
                np.diff(edges),
                bottom=floor,
                align="edge",
                facecolor="white",
                edgecolor=style(look).color,
                hatch=3 * style(look).hatch,
                linewidth=_FILLED_EDGE,
                label=word,
            )
    if panel.is_log:
        axes.set_yscale("log")
    axes.set(xlim=(0, 1), xlabel=f"sensitivity / maximum ({panel.maximum:.3g})")
    axes.set_ylim(floor, None)
    axes.set_ylabel(f"{panel.name}{', log scale' if panel.is_log else ''}")
    only_whole_counts(axes)
    axes.set_title(f"{panel.name}: {panel.removed_text}")
    axes.axvline(panel.mean, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="mean")
    top = axes.get_ylim()[1]
    axes.set_ylim(floor, 2.5 * top if panel.is_log else 1.12 * top)
    axes.annotate(
        f"mean {panel.mean:.3f}",
        (panel.mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
    )


def pruning_figure(series: PruningSeries) -> "Figure":
    """Return weights (left) and neurons (right) before and after, with their sensitivities below."""
    with print_style():
        figure = new_figure(3.6, series.title)
        grid = figure.subplots(2, 2, sharex="col", height_ratios=(3, 2))
        _weights(grid[0, 0], grid[1, 0], series)
        _neurons(grid[0, 1], grid[1, 1], series)
    return figure


def _weights(above: "Axes", below: "Axes", series: PruningSeries) -> None:
    weights = series.weights
    edges = np.array(weights.edges)
    above.stairs(weights.before, edges, color=style("before").color, linewidth=1.2, linestyle=(0, (5, 2)))
    above.stairs(weights.after, edges, fill=True, color=style("after").color, alpha=0.45)
    above.stairs(weights.after, edges, color=style("after").color, linewidth=0.9)
    above.set(title="weights", ylabel="weights", ylim=(0, None))
    only_whole_counts(above)
    values = np.array([np.nan if value is None else value for value in weights.sensitivity])
    below.plot((edges[:-1] + edges[1:]) / 2, values, color=GREY, linewidth=1.2, marker=".", markersize=3)
    below.set(xlabel="value of the weight", ylabel="mean sensitivity\n/ maximum", ylim=(0, None))
    below.set_xlim(edges[0], edges[-1])


def _neurons(above: "Axes", below: "Axes", series: PruningSeries) -> None:
    neurons = series.neurons
    ranks = np.array(neurons.ranks) + 1
    above.plot(ranks, neurons.norm_before, label="before", **line_options("before", has_marks=False))
    above.plot(ranks, neurons.norm_after, label="after", linewidth=0.9, **line_options("after", has_marks=False))
    above.set(title="neurons, by sensitivity", ylabel="norm of the\nneuron's weights", ylim=(0, None))
    below.plot(ranks, neurons.sensitivity, color=GREY, linewidth=1.2)
    below.set(xlabel="rank of the neuron by sensitivity", ylabel="sensitivity\n/ maximum", ylim=(0, None))
    below.set_xlim(0, neurons.neurons + 1)
    roles: tuple[Role, Role] = ("lowest", "highest")
    for (first, past), role in zip(series.removed_ranks, roles, strict=True):
        if past > first:
            for axes in (above, below):
                axes.axvspan(first + 0.5, past + 0.5, color=style(role).color, alpha=0.25, linewidth=0)
            is_low = role == "lowest"
            below.annotate(
                f"{past - first} {role} removed",
                (0.01 if is_low else 0.99, 0.97 if is_low else 0.04),
                xycoords="axes fraction",
                ha="left" if is_low else "right",
                va="top" if is_low else "bottom",
                color=style(role).color,
            )
    handles, labels = above.get_legend_handles_labels()
    above.figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=2.4)

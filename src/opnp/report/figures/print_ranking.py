"""Methods in the order of how well they do, for print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opnp.report.figures.print_style import line_options, new_figure, print_style
from opnp.report.palette import GREEN, GREY, Role
from opnp.report.series.ranking_series import RankedMethod, RankingSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ranking_figure"]

_ROW = 0.155


def ranking_figure(series: RankingSeries) -> "Figure":
    """Return a dot plot: AUROC left, FPR95 right, the best method at the top."""
    methods = series.methods
    with print_style():
        figure = new_figure(_ROW * len(methods) + 0.9, series.title)
        left, right = figure.subplots(1, 2, sharey=True)
        _dots(left, methods, [each.near_auroc for each in methods], [each.far_auroc for each in methods])
        _dots(right, methods, [each.near_fpr95 for each in methods], [each.far_fpr95 for each in methods])
        left.set_xlabel("AUROC (%),\nhigher is better")
        right.set_xlabel("FPR95 (%): OOD kept where 95 % of\nID is kept, lower is better")
        left.set_ylim(len(methods) - 0.4, -0.6)
        left.set_yticks(range(len(methods)), [each.method for each in methods], fontsize=7)
        for text, each in zip(left.get_yticklabels(), methods, strict=True):
            if each.role != "other":
                text.set_fontweight("bold")
                text.set_color(GREEN if each.role == "chosen" else "black")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _dots(
    axes: "Axes", methods: Sequence[RankedMethod], near: Sequence[float | None], far: Sequence[float | None]
) -> None:
    for place, (first, second) in enumerate(zip(near, far, strict=True)):
        if first is not None and second is not None:
            axes.plot([100 * first, 100 * second], [place, place], color=GREY, linewidth=0.8, zorder=1)
    sides: tuple[tuple[Role, Sequence[float | None]], ...] = (("near", near), ("far", far))
    for role, values in sides:
        points = [(100 * value, place) for place, value in enumerate(values) if value is not None]
        if points:
            options = line_options(role) | {"linestyle": "none", "label": f"mean of the {role} OOD sets"}
            axes.plot(*zip(*points, strict=True), **options, zorder=2)
    for place, each in enumerate(methods):
        if each.role != "other":
            color = GREEN if each.role == "chosen" else GREY
            axes.axhspan(place - 0.5, place + 0.5, color=color, alpha=0.15, linewidth=0, zorder=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.tick_params(axis="y", length=0)

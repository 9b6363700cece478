"""Figures for print, by matplotlib: a paper's width, small sans serif; files are equal for equal data."""

import io
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from opnp.errors import MissingExtraError, OptionError
from opnp.files import write_atomically
from opnp.report.palette import GREEN, GREY, HEAT, ROLES, Role
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "print_figure", "require_matplotlib", "write_figure"]

FORMATS = ("svg", "png", "pdf")
"""Formats of files."""

_WIDTH = 6.75
"""Width of a figure in inches: two columns of a paper."""

_RESOLUTION = 200
_TITLE_LETTERS = 88
_SETTINGS = {
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "opnp",
    "xtick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7.5,
    "ytick.major.width": 0.6,
}
_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": ":"}
_MARKS = {"circle": "o", "square": "s", "diamond": "D"}
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_SCORE_ROW, _CURVE_ROW, _METHOD_ROW = 1.25, 1.75, 0.155
"""Heights in inches of an OOD set among histograms and among curves, and of a method in the ranking."""


def print_figure(series: Series) -> "Figure":
    """Return a figure of matplotlib for print, white ground.

    Args:
        series: What is drawn.

    Returns:
        The figure; no global state of matplotlib is touched.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    """
    with _print_style():
        return _DRAWERS[type(series)](series)


def write_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's ending; equal figures give equal bytes.

    Raises:
        OptionError: If the ending is none of `FORMATS`.
        MissingExtraError: If matplotlib is not installed.
        MissingFileError: If the folder does not exist.

    """
    ending = os.fspath(path).rpartition(".")[2].lower()
    if ending not in FORMATS:
        raise OptionError(f"`path` must end in {', '.join('.' + name for name in FORMATS)}, got {os.fspath(path)!r}.")
    content = io.BytesIO()
    with _print_style():
        figure.savefig(content, format=ending, dpi=_RESOLUTION, metadata=_NO_DATE[ending])
    write_atomically(path, content.getvalue())


def require_matplotlib() -> None:
    """Raise if matplotlib is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    try:
        found = find_spec("matplotlib") is not None
    except ValueError:  # a module without a spec, such as one that was blocked
        found = False
    if not found:
        raise MissingExtraError("Figures need matplotlib, which is not installed: `pip install 'opnp[report]'`.")


def sensitivity_figure(series: SensitivitySeries) -> "Figure":
    """Return the histograms of sensitivities: weights left, neurons right."""
    figure = _new_figure(2.3, series.title)
    grid = figure.subplots(1, len(series.panels), squeeze=False)
    for axes, panel in zip(grid[0], series.panels, strict=True):
        _sensitivities(axes, panel)
    labelled = [axes.get_legend_handles_labels() for axes in grid[0]]
    by_label = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=4, handlelength=1.6)
    return figure


def _sensitivities(axes: "Axes", panel: SensitivityPanel) -> None:
    edges = np.array(panel.picture.edges)
    ends: tuple[tuple[Role, tuple[int, ...]], ...] = (
        ("lowest", panel.picture.lowest),
        ("highest", panel.picture.highest),
    )
    floor = 0.5 if panel.is_log else 0
    axes.stairs(panel.picture.total, edges, fill=True, baseline=floor, label="kept", **_bar_options("kept"))
    for role, counts in ends:
        if any(counts):
            shown = np.where(np.array(counts) > 0, counts, np.nan)
            axes.bar(
                edges[:-1],
                shown - floor,
                np.diff(edges),
                bottom=floor,
                align="edge",
                facecolor="white",
                edgecolor=ROLES[role].color,
                hatch=3 * ROLES[role].hatch,
                linewidth=0.4,
                label=f"{role}, removed",
            )
    if panel.is_log:
        axes.set_yscale("log")
    axes.set(xlim=(0, 1), xlabel=f"sensitivity / maximum ({panel.picture.maximum:.3g})")
    axes.set_ylim(floor, None)
    axes.set_ylabel(f"{panel.name}{', log scale' if panel.is_log else ''}")
    _only_whole_counts(axes)
    axes.set_title(f"{panel.name}: {panel.removed_text}")
    axes.axvline(panel.picture.mean, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="mean")
    top = axes.get_ylim()[1]
    axes.set_ylim(floor, 2.5 * top if panel.is_log else 1.12 * top)
    axes.annotate(
        f"mean {panel.picture.mean:.3f}",
        (panel.picture.mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
    )


def pruning_figure(series: PruningSeries) -> "Figure":
    """Return weights (left) and neurons (right) before and after, with their sensitivities below."""
    figure = _new_figure(3.6, series.title)
    grid = figure.subplots(2, 2, sharex="col", height_ratios=(3, 2))
    _weights(grid[0, 0], grid[1, 0], series)
    _neurons(grid[0, 1], grid[1, 1], series)
    return figure


def _weights(above: "Axes", below: "Axes", series: PruningSeries) -> None:
    weights = series.weights
    edges = np.array(weights.edges)
    above.stairs(weights.before, edges, color=ROLES["before"].color, linewidth=1.2, linestyle=(0, (5, 2)))
    above.stairs(weights.after, edges, fill=True, color=ROLES["after"].color, alpha=0.45)
    above.stairs(weights.after, edges, color=ROLES["after"].color, linewidth=0.9)
    above.set(title="weights", ylabel="weights", ylim=(0, None))
    _only_whole_counts(above)
    values = np.array([np.nan if value is None else value for value in weights.sensitivity])
    below.plot((edges[:-1] + edges[1:]) / 2, values, color=GREY, linewidth=1.2, marker=".", markersize=3)
    below.set(xlabel="value of the weight", ylabel="mean sensitivity\n/ maximum", ylim=(0, None))
    below.set_xlim(edges[0], edges[-1])


def _neurons(above: "Axes", below: "Axes", series: PruningSeries) -> None:
    neurons = series.neurons
    ranks = np.array(neurons.ranks) + 1
    above.plot(ranks, neurons.norm_before, label="before", **_line_options("before", has_marks=False))
    above.plot(ranks, neurons.norm_after, label="after", linewidth=0.9, **_line_options("after", has_marks=False))
    above.set(title="neurons, by sensitivity", ylabel="norm of the\nneuron's weights", ylim=(0, None))
    below.plot(ranks, neurons.sensitivity, color=GREY, linewidth=1.2)
    below.set(xlabel="rank of the neuron by sensitivity", ylabel="sensitivity\n/ maximum", ylim=(0, None))
    below.set_xlim(0, neurons.neurons + 1)
    roles: tuple[Role, Role] = ("lowest", "highest")
    for (first, past), role in zip(series.removed_ranks, roles, strict=True):
        if past > first:
            for axes in (above, below):
                axes.axvspan(first + 0.5, past + 0.5, color=ROLES[role].color, alpha=0.25, linewidth=0)
            is_low = role == "lowest"
            below.annotate(
                f"{past - first} {role} removed",
                (0.01 if is_low else 0.99, 0.97 if is_low else 0.04),
                xycoords="axes fraction",
                ha="left" if is_low else "right",
                va="top" if is_low else "bottom",
                color=ROLES[role].color,
            )
    handles, labels = above.get_legend_handles_labels()
    above.figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=2.4)


def ratios_figure(series: RatioSeries) -> "Figure":
    """Return FPR95 (above) and AUROC (below) against each ratio."""
    figure = _new_figure(3.6, series.title)
    grid = figure.subplots(2, len(series.panels), sharex="col", sharey="row", squeeze=False)
    for row, metric in enumerate(METRICS):
        for column, panel in enumerate(series.panels):
            _ratio(grid[row, column], panel, metric)
        grid[row, 0].set_ylabel(f"{metric.upper()} (%)")
    for column, panel in enumerate(series.panels):
        _marks(grid[1, column], panel)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=2.6)
    return figure


def _ratio(axes: "Axes", panel: RatioPanel, metric: Metric) -> None:
    places = [panel.position(value) for value in panel.values]
    for line in panel.lines:
        role = line.nearness
        axes.plot(places, 100 * np.array(line.values(metric)), label=f"{role} OOD", **_line_options(role))
        axes.axhline(
            100 * getattr(line.energy, metric),
            color=ROLES[role].color,
            linewidth=0.9,
            linestyle=(0, (5, 2)) if role == "far" else (0, (1, 1.5)),
            label=f"Energy, {role}",
        )
    if panel.chosen is not None:
        axes.axvline(panel.position(panel.chosen), color=GREEN, linewidth=2.4, alpha=0.5, label="chosen by OPNP")


def _marks(axes: "Axes", panel: RatioPanel) -> None:
    places, texts = zip(*panel.ticks, strict=True)
    axes.set_xticks(places, texts)
    chosen = f"\n{panel.chosen_text}".replace(", ", ",\n") if panel.chosen_text else ""
    axes.set_xlabel(f"rho_{panel.ratio}: share of\n{panel.axis_text}{chosen}")


def grid_figure(series: GridSeries) -> "Figure":
    """Return heat maps over two ratios: AUROC above, FPR95 below, near left, far right."""
    columns = len({panel.nearness for panel in series.panels})
    rows = len(series.panels) // columns
    height = 0.27 * len(series.y_values) + 0.55
    figure = _new_figure(rows * height + 0.4, series.title)
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
    axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, edgecolor=ROLES["ood"].color, **frame))
    if series.chosen is not None:
        place = series.chosen[0] - 0.44, series.chosen[1] - 0.42
        axes.add_patch(Rectangle(place, 0.88, 0.84, edgecolor="black", linestyle=(0, (2, 1.5)), **frame))
        axes.patches[-1].set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set_xticks(range(len(series.x_values)), [ratio_text(value) for value in series.x_values])
    axes.set_yticks(range(len(series.y_values)), [ratio_text(value) for value in series.y_values])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{panel.nearness} {panel.metric.upper()} (%); Energy {100 * panel.energy:.1f}")


def calibration_figure(series: CalibrationSeries) -> "Figure":
    """Return confidence histograms above reliability diagrams, before left, after right."""
    figure = _new_figure(3.9, series.title)
    count = len(series.panels)
    grid = figure.subplots(2, count, sharex=True, sharey="row", squeeze=False, height_ratios=(1, 2))
    for column, panel in enumerate(series.panels):
        role: Role = "before" if panel.name == "before" else "after"
        _confidence(grid[0, column], panel, role)
        grid[0, column].set_title(f"{panel.name} {series.change}: ECE {percent(panel.figures.ece)}", fontweight="bold")
        _reliability(grid[1, column], panel, role)
    grid[0, 0].set_ylabel("samples (%)")
    grid[1, 0].set_ylabel("right answers (%)")
    grid[1, -1].legend(loc="upper left")
    return figure


def _confidence(axes: "Axes", panel: CalibrationPanel, role: Role) -> None:
    axes.stairs(
        100 * np.array(panel.shares), 100 * np.array(panel.edges), fill=True, color=ROLES[role].color, alpha=0.7
    )
    lines = (panel.figures.accuracy, "accuracy", "-"), (panel.mean_confidence, "mean confidence", "--")
    for value, word, dash in lines:
        axes.axvline(100 * value, color="black", linewidth=0.9, linestyle=dash, label=f"{word} {percent(value)}")
    axes.legend(loc="upper left", handlelength=2)


def _reliability(axes: "Axes", panel: CalibrationPanel, role: Role) -> None:
    left, right = np.array(panel.edges[:-1]), np.array(panel.edges[1:])
    middle, width = 50 * (left + right), 100 * (right - left)
    accuracy = np.array([np.nan if value is None else 100 * value for value in panel.right])
    confidence = np.array([np.nan if value is None else 100 * value for value in panel.confidence])
    axes.bar(middle, accuracy, width, facecolor=ROLES[role].color, alpha=0.7, edgecolor="white", linewidth=0.5)
    axes.bar(
        middle,
        confidence - accuracy,
        width,
        bottom=accuracy,
        facecolor="none",
        edgecolor=ROLES["ood"].color,
        hatch="////",
        linewidth=0.6,
        label="gap to the mean confidence",
    )
    axes.axline((0, 0), (100, 100), color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated")
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence: largest probability (%)")


def scores_figure(series: ScoreSeries) -> "Figure":
    """Return the histograms of scores: a row for each OOD set, a column for each method."""
    figure = _new_figure(_SCORE_ROW * len(series.sets) + 0.5, series.title)
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
    axes.stairs(inside, edges, fill=True, label="ID", **_bar_options("id"))
    axes.stairs(outside, edges, fill=True, label="OOD", **_bar_options("ood"))
    axes.stairs(outside, edges, color=ROLES["ood"].color, linewidth=1.0)
    label = f"threshold: {brief_percent(keep)} of ID is kept, left of it"
    axes.axvline(panel.threshold, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label=label)
    name = f"{method_label(panel.method)}, {set_title(panel.set, panel.nearness)}"
    axes.set_title(f"{name}: {percent(panel.kept_ood)} of OOD kept", fontsize=7.5)
    axes.margins(x=0)
    top = max(inside.max(), outside.max())
    axes.set_ylim(0, 1.08 * top)


def curves_figure(series: CurveSeries) -> "Figure":
    """Return ROC (left) and precision-recall curves (right): a row for each OOD set."""
    figure = _new_figure(_CURVE_ROW * len(series.panels) + 0.2, series.title)
    grid = figure.subplots(len(series.panels), 2, squeeze=False)
    for row, panel in enumerate(series.panels):
        _roc(grid[row, 0], panel)
        _precision(grid[row, 1], panel)
    grid[-1, 0].set_xlabel("OOD kept (%)")
    grid[-1, 1].set_xlabel("ID kept: recall (%)")
    return figure


def _roc(axes: "Axes", panel: CurvePanel) -> None:
    axes.axline((0, 0), (100, 100), color=GREY, linewidth=0.6, linestyle=":")
    for column, curve in enumerate(panel.curves):
        axes.plot(
            100 * np.array(curve.kept_ood),
            100 * np.array(curve.kept_id),
            label=f"{method_label(curve.method)}: AUROC {percent(curve.auroc)}",
            **_line_options(curve_role(column, len(panel.curves)), has_marks=False),
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
            **_line_options(curve_role(column, len(panel.curves)), has_marks=False),
        )
    axes.set(xlim=(0, 100), ylim=(0, 101))
    axes.set_ylabel("ID among the kept:\nprecision (%)")
    axes.legend(loc="lower center", handlelength=2.4)


def ranking_figure(series: RankingSeries) -> "Figure":
    """Return a dot plot: AUROC left, FPR95 right, the best method at the top."""
    methods = series.methods
    figure = _new_figure(_METHOD_ROW * len(methods) + 0.9, series.title)
    left, right = figure.subplots(1, 2, sharey=True)
    _dots(left, series, "auroc")
    _dots(right, series, "fpr95")
    left.set_xlabel("AUROC (%),\nhigher is better")
    right.set_xlabel("FPR95 (%): OOD kept where 95 % of\nID is kept, lower is better")
    left.set_ylim(len(methods) - 0.4, -0.6)
    left.set_yticks(range(len(methods)), [each.method for each in methods], fontsize=7)
    for place, role in series.marked.items():
        text = left.get_yticklabels()[place]
        text.set_fontweight("bold")
        text.set_color(GREEN if role == "chosen" else "black")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _dots(axes: "Axes", series: RankingSeries, metric: Metric) -> None:
    by_side = {side: series.values(side, metric) for side in SIDES}
    for place, (first, second) in enumerate(zip(*by_side.values(), strict=True)):
        if first is not None and second is not None:
            axes.plot([100 * first, 100 * second], [place, place], color=GREY, linewidth=0.8, zorder=1)
    for role, values in by_side.items():
        points = [(100 * value, place) for place, value in enumerate(values) if value is not None]
        if points:
            options = _line_options(role) | {"linestyle": "none", "label": f"mean of the {role} OOD sets"}
            axes.plot(*zip(*points, strict=True), **options, zorder=2)
    for place, mark in series.marked.items():
        axes.axhspan(place - 0.5, place + 0.5, color=ROLES[mark].color, alpha=0.15, linewidth=0, zorder=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.tick_params(axis="y", length=0)


@contextmanager
def _print_style() -> Iterator[None]:
    """Set matplotlib's settings for a figure, and put them back.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    """
    require_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]  # names of settings, as text
        yield


def _new_figure(height: float, title: str) -> "Figure":
    """Return an empty figure with its title at the top left.

    Args:
        height: In inches, without the title.
        title: The finding.

    Returns:
        The figure, laid out when it is drawn.

    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title.replace(" %", "\N{NO-BREAK SPACE}%"), _TITLE_LETTERS)
    figure = Figure(figsize=(_WIDTH, height + 0.16 * len(lines) + 0.1), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def _line_options(role: Role, *, has_marks: bool = True) -> dict[str, Any]:
    """Return matplotlib's options for a line of a role."""
    look = ROLES[role]
    return {
        "color": look.color,
        "linestyle": _DASHES[look.dash],
        "marker": _MARKS[look.mark] if has_marks else "",
        "markerfacecolor": look.color if look.is_filled else "white",
    }


def _bar_options(role: Role) -> dict[str, Any]:
    """Return matplotlib's options for filled areas of a role."""
    look = ROLES[role]
    if not look.hatch:
        return {"facecolor": look.color, "alpha": 0.55, "linewidth": 0}
    return {"facecolor": "none", "edgecolor": look.color, "hatch": 3 * look.hatch, "linewidth": 0.8}


def _only_whole_counts(axes: "Axes") -> None:
    """Write large counts with a thin space between thousands."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\N{THIN SPACE}")))


_DRAWERS: dict[type, Callable[[Any], "Figure"]] = {
    CalibrationSeries: calibration_figure,
    CurveSeries: curves_figure,
    GridSeries: grid_figure,
    PruningSeries: pruning_figure,
    RankingSeries: ranking_figure,
    RatioSeries: ratios_figure,
    ScoreSeries: scores_figure,
    SensitivitySeries: sensitivity_figure,
}

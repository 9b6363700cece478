"""Data of the figures of a sweep: FPR95 and AUROC against each ratio, and heat maps over two ratios."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opnp.report.record_series import Series
from opnp.report.wording import RATIO_NAMES, chosen_ratios, has_shaping, percent, ratio_text
from opnp.values.figures import DetectionFigures, Nearness
from opnp.values.sweep import SweepCurve, SweepPoint, SweptModel

__all__ = [
    "METRICS",
    "SIDES",
    "GridPanel",
    "GridSeries",
    "Metric",
    "RatioLine",
    "RatioPanel",
    "RatioSeries",
    "grid_series",
    "ratio_series",
]

Metric = Literal["fpr95", "auroc"]
METRICS: tuple[Metric, ...] = ("fpr95", "auroc")
"""What is drawn against ratios."""

SIDES: tuple[Nearness, ...] = ("near", "far")
_WIDE = 50
_ZERO_BEFORE = 0.5


@dataclass(frozen=True, slots=True)
class RatioLine:
    """One side of one panel.

    Attributes:
        nearness: Mean over the ``near`` or over the ``far`` OOD sets.
        means: The figures at each value.
        energy: Those of the energy of the original head.

    """

    nearness: Nearness
    means: tuple[DetectionFigures, ...]
    energy: DetectionFigures

    def values(self, metric: Metric) -> list[float]:
        """Return a metric at each value."""
        return [getattr(mean, metric) for mean in self.means]


@dataclass(frozen=True, slots=True)
class RatioPanel:
    """What one ratio does.

    Attributes:
        ratio: Name of the ratio, such as ``w_min``.
        values: The values tried, ascending.
        lines: Near, then far, of those that there are.
        chosen: The value that opnp chose on this model, or None where that is not known.
        is_shaped: Whether opnp chose to shape the features as well, which the curves do without.

    """

    ratio: str
    values: tuple[float, ...]
    lines: tuple[RatioLine, ...]
    chosen: float | None
    is_shaped: bool = False

    @property
    def axis_text(self) -> str:
        """What the ratio is a share of, in words."""
        kind = "weights" if self.ratio.startswith("w") else "neurons"
        return f"{kind}, {'lowest' if self.ratio.endswith('min') else 'highest'}"

    @property
    def chosen_text(self) -> str:
        """What was chosen, in words; empty where that is not known."""
        if self.chosen is None:
            return ""
        return f"chosen {ratio_text(self.chosen)}" + (", without the shaping" if self.is_shaped else "")

    @property
    def is_log(self) -> bool:
        """Whether the axis is logarithmic, with zero half a decade before the smallest value."""
        filled = [value for value in self.values if value > 0]
        return len(filled) > 2 and max(filled) >= _WIDE * min(filled)

    def position(self, value: float) -> float:
        """Return where a value stands on the axis."""
        if not self.is_log:
            return value
        smallest = min(each for each in self.values if each > 0)
        zero = math.log10(smallest) - _ZERO_BEFORE
        if value < smallest:
            return zero + _ZERO_BEFORE * value / smallest
        return math.log10(value)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Positions and texts of the marks on the axis."""
        if not self.is_log:
            top = max(self.values)
            step = next((each for each in (0.001, 0.01, 0.05, 0.1) if top / each <= 5), 0.2)
            marks = [step * place for place in range(math.floor(top / step + 1e-9) + 1)]
        else:
            filled = [value for value in self.values if value > 0]
            decades = range(math.ceil(math.log10(min(filled)) - 1e-9), math.floor(math.log10(max(filled)) + 1e-9) + 1)
            marks = [0.0, *(10.0**decade for decade in decades)]
        return tuple((self.position(mark), ratio_text(mark)) for mark in marks)


@dataclass(frozen=True, slots=True)
class RatioSeries(Series):
    """FPR95 and AUROC against each of the four ratios, by itself: the paper's Figure 3.

    Attributes:
        panels: One for each ratio that was swept.

    """

    panels: tuple[RatioPanel, ...]


def ratio_series(model: SweptModel, *, settings: Mapping[str, object] | None = None) -> RatioSeries | None:
    """Return FPR95 and AUROC against each ratio, or None where no ratio was swept.

    Args:
        model: The sweep of a model.
        settings: Settings of the row of opnp as it is used, whose ratios are marked. They also say which reading and
            scope is drawn where the sweep has several.

    Returns:
        What is drawn.

    """
    chosen = chosen_ratios(settings or {})
    panels = []
    for ratio in RATIO_NAMES:
        points = _points(model, ratio, settings or {})
        lines = tuple(line for side in SIDES if (line := _line(model.energy, points, side)) is not None)
        if lines:
            values = tuple(float(point.varied[ratio]) for point in points)
            panels.append(RatioPanel(ratio, values, lines, chosen.get(ratio), has_shaping(settings)))
    if not panels:
        return None
    best = "; ".join(_best_sentences(panels))
    ranges = [
        f"rho_{panel.ratio} from {ratio_text(panel.values[0])} to {ratio_text(panel.values[-1])}, {line.nearness}: "
        f"AUROC {_range_text(line.values('auroc'))}, FPR95 {_range_text(line.values('fpr95'))}"
        for panel in panels
        for line in panel.lines
    ]
    return RatioSeries(
        model=model.model,
        title=f"One ratio alone, at best: {best}",
        alt=f"FPR95 and AUROC against each ratio by itself. {best}. {'; '.join(ranges)}.",
        panels=tuple(panels),
    )


def _points(model: SweptModel, ratio: str, settings: Mapping[str, object]) -> list[SweepPoint]:
    """Return the points that vary one ratio alone, in the scope and the reading of the settings if there are such."""
    wanted = [ratio]
    if ratio.startswith("w") and settings.get("scope") == "class":
        wanted.insert(0, f"{ratio}-class")
    if ratio.startswith("o") and settings.get("neuron") == "aggregate":
        wanted.insert(0, f"{ratio}-aggregate")
    for name in wanted:
        found = [point for point in model.points if point.curve == name and point.status == "ok"]
        if found:
            return sorted(found, key=lambda point: float(point.varied[ratio]))
    return []


def _mean(point: SweepPoint, side: Nearness) -> DetectionFigures | None:
    return point.near if side == "near" else point.far


def _line(energy: SweepPoint, points: Sequence[SweepPoint], side: Nearness) -> RatioLine | None:
    reference = _mean(energy, side)
    means = tuple(mean for point in points if (mean := _mean(point, side)) is not None)
    if reference is None or not means or len(means) < len(points):
        return None
    return RatioLine(side, means, reference)


def _best_sentences(panels: Sequence[RatioPanel]) -> list[str]:
    """Return the best AUROC of one ratio alone beside that of the energy, far OOD first."""
    parts = []
    for side in reversed(SIDES):
        found = [
            (mean.auroc, line.energy.auroc, panel.ratio, value)
            for panel in panels
            for line in panel.lines
            if line.nearness == side
            for mean, value in zip(line.means, panel.values, strict=True)
        ]
        if found:
            auroc, energy, ratio, value = max(found, key=lambda each: each[0])
            gain = "no ratio gains" if value == 0 or percent(auroc) == percent(energy) else ""
            at_best = f"{percent(auroc)} at rho_{ratio} = {ratio_text(value)}"
            parts.append(f"{side} AUROC {gain or at_best} (Energy {percent(energy)})")
    return parts


def _range_text(values: Sequence[float]) -> str:
    return f"{percent(min(values))} to {percent(max(values))}"


@dataclass(frozen=True, slots=True)
class GridPanel:
    """One figure over the grid.

    Attributes:
        metric: ``fpr95`` or ``auroc``.
        nearness: Mean over the ``near`` or over the ``far`` OOD sets.
        values: By value of y, then of x; None where a setting was not tried or failed.
        energy: The figure of the energy of the original head.
        best: Row and column of the best value.
        best_value: The best value.

    """

    metric: Metric
    nearness: Nearness
    values: tuple[tuple[float | None, ...], ...]
    energy: float
    best: tuple[int, int]
    best_value: float


@dataclass(frozen=True, slots=True)
class GridSeries(Series):
    """A heat map over two ratios.

    Attributes:
        x: Name of the ratio across.
        y: Name of the ratio upwards.
        x_values: Its values, ascending.
        y_values: Its values, ascending.
        chosen: Column and row of what opnp chose, or None where that is no point of the grid.
        panels: AUROC and FPR95, near before far.
        is_shaped: Whether opnp chose to shape the features as well, which the grid does without.

    """

    x: str
    y: str
    x_values: tuple[float, ...]
    y_values: tuple[float, ...]
    chosen: tuple[int, int] | None
    panels: tuple[GridPanel, ...]
    is_shaped: bool = False

    @property
    def frames(self) -> str:
        """What the frames in the heat maps mean."""
        if self.chosen is None:
            return "framed: the best"
        return "framed: the best; dashed: ratios chosen by OPNP" + (", without the shaping" if self.is_shaped else "")


def grid_series(
    model: SweptModel, curve: SweepCurve, *, settings: Mapping[str, object] | None = None
) -> GridSeries | None:
    """Return figures over two ratios, or None where the curve is no grid of two ratios or nothing came of it.

    Args:
        model: The sweep of a model.
        curve: A curve of the sweep.
        settings: Settings of the row of opnp as it is used, which is marked where it lies on the grid.

    Returns:
        What is drawn.

    """
    if len(curve.varies) != 2 or not set(curve.varies) <= set(RATIO_NAMES):
        return None
    x, y = curve.varies
    points = [point for point in model.points if point.curve == curve.name and point.status == "ok"]
    by_place = {(float(point.varied[y]), float(point.varied[x])): point for point in points}
    x_values = sorted({place[1] for place in by_place})
    y_values = sorted({place[0] for place in by_place})
    grid = [[by_place.get((value, each)) for each in x_values] for value in y_values]
    found = (_panel(model.energy, grid, metric, side) for metric in reversed(METRICS) for side in SIDES)
    panels = tuple(panel for panel in found if panel is not None)
    if not panels:
        return None
    findings = [
        f"{panel.nearness} {panel.metric.upper()} {percent(panel.best_value)} at rho_{x} = "
        f"{ratio_text(x_values[panel.best[1]])}, rho_{y} = {ratio_text(y_values[panel.best[0]])} "
        f"(Energy {percent(panel.energy)})"
        for panel in panels
    ]
    aurocs = [text for text, panel in zip(findings, panels, strict=True) if panel.metric == "auroc"]
    ratios = chosen_ratios(settings or {})
    is_on_grid = ratios.get(x) in x_values and ratios.get(y) in y_values
    has_others = any(value for name, value in ratios.items() if name not in (x, y))  # they are zero on the grid
    return GridSeries(
        model=model.model,
        title=f"Best of the grid: {'; '.join(aurocs[::-1])}",
        alt=f"Heat maps over rho_{x} and rho_{y}. Best of the grid: {'; '.join(findings)}.",
        x=x,
        y=y,
        x_values=tuple(x_values),
        y_values=tuple(y_values),
        chosen=(x_values.index(ratios[x]), y_values.index(ratios[y])) if is_on_grid and not has_others else None,
        panels=panels,
        is_shaped=has_shaping(settings),
    )


def _panel(
    energy: SweepPoint, points: Sequence[Sequence[SweepPoint | None]], metric: Metric, side: Nearness
) -> GridPanel | None:
    values = tuple(tuple(_value(point, metric, side) for point in line) for line in points)
    reference = _value(energy, metric, side)
    sign = -1 if metric == "auroc" else 1
    ranked = [
        (sign * value, (row, column), value)
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None
    ]
    if reference is None or not ranked:
        return None
    _, best, best_value = min(ranked)
    return GridPanel(metric, side, values, reference, best, best_value)


def _value(point: SweepPoint | None, metric: Metric, side: Nearness) -> float | None:
    mean = None if point is None else _mean(point, side)
    if mean is None:
        return None
    return mean.auroc if metric == "auroc" else mean.fpr95

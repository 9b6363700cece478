"""A heat map over two ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opnp.report.series.ratio_series import RATIO_NAMES, Metric, chosen_ratios, has_shaping
from opnp.report.series.wording import percent, ratio_text
from opnp.values.figures import Nearness
from opnp.values.sweep import SweepCurve, SweepPoint, SweptModel

__all__ = ["GridPanel", "GridSeries", "grid_series"]


@dataclass(frozen=True, slots=True)
class GridPanel:
    """One figure over the grid.

    Attributes:
        metric: ``fpr95`` or ``auroc``.
        nearness: Mean over the ``near`` or over the ``far`` OOD sets.
        values: By value of y, then of x; None where a setting was not tried or failed.
        energy: The figure of the energy of the original head.
        best: Row and column of the best value.

    """

    metric: Metric
    nearness: Nearness
    values: tuple[tuple[float | None, ...], ...]
    energy: float
    best: tuple[int, int]

    @property
    def best_value(self) -> float:
        """The best value."""
        value = self.values[self.best[0]][self.best[1]]
        return self.energy if value is None else value


@dataclass(frozen=True, slots=True)
class GridSeries:
    """Figures over a grid of two ratios.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        curve: Name of the curve in the sweep.
        x: Name of the ratio across.
        y: Name of the ratio upwards.
        x_values: Its values, ascending.
        y_values: Its values, ascending.
        chosen: Column and row of what opnp chose, or None where that is no point of the grid.
        panels: AUROC and FPR95, near before far.
        is_shaped: Whether opnp chose to shape the features as well, which the grid does without.

    """

    model: str
    title: str
    alt: str
    curve: str
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
    metrics: tuple[Metric, ...] = ("auroc", "fpr95")
    panels = [
        panel
        for metric in metrics
        for side in ("near", "far")
        if (panel := _panel(model.energy, grid, metric, side)) is not None
    ]
    if not panels:
        return None
    findings = [
        f"{panel.nearness} {panel.metric.upper()} {percent(panel.best_value)} at rho_{x} = "
        f"{ratio_text(x_values[panel.best[1]])}, rho_{y} = {ratio_text(y_values[panel.best[0]])} "
        f"(Energy {percent(panel.energy)})"
        for panel in panels
    ]
    aurocs = [text for text, panel in zip(findings, panels, strict=True) if panel.metric == "auroc"]
    return GridSeries(
        model=model.model,
        title=f"Best of the grid: {'; '.join(aurocs[::-1])}",
        alt=f"Heat maps over rho_{x} and rho_{y}. Best of the grid: {'; '.join(findings)}.",
        curve=curve.name,
        x=x,
        y=y,
        x_values=tuple(x_values),
        y_values=tuple(y_values),
        chosen=_chosen(x, y, x_values, y_values, chosen_ratios(settings or {})),
        panels=tuple(panels),
        is_shaped=has_shaping(settings),
    )


def _chosen(
    x: str, y: str, x_values: list[float], y_values: list[float], ratios: Mapping[str, float]
) -> tuple[int, int] | None:
    """Return the place of the chosen ratios, if the other two are zero as they are on the grid."""
    others = [value for name, value in ratios.items() if name not in (x, y)]
    if any(others) or ratios.get(x) not in x_values or ratios.get(y) not in y_values:
        return None
    return x_values.index(ratios[x]), y_values.index(ratios[y])


def _panel(
    energy: SweepPoint, points: Sequence[Sequence[SweepPoint | None]], metric: Metric, side: Nearness
) -> GridPanel | None:
    values = tuple(tuple(_value(point, metric, side) for point in line) for line in points)
    reference = _value(energy, metric, side)
    sign = -1 if metric == "auroc" else 1
    ranked = [
        (sign * value, (row, column))
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None
    ]
    if reference is None or not ranked:
        return None
    return GridPanel(metric=metric, nearness=side, values=values, energy=reference, best=min(ranked)[1])


def _value(point: SweepPoint | None, metric: Metric, side: Nearness) -> float | None:
    mean = None if point is None else point.near if side == "near" else point.far
    if mean is None:
        return None
    return mean.auroc if metric == "auroc" else mean.fpr95

"""FPR95 and AUROC against each of the four ratios, by itself: the paper's Figure 3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opnp.report.series.wording import fused_members, percent, ratio_text
from opnp.values.figures import Nearness
from opnp.values.sweep import SweepPoint, SweptModel

__all__ = ["RATIO_NAMES", "RatioLine", "RatioPanel", "RatioSeries", "chosen_ratios", "has_shaping", "ratio_series"]

RATIO_NAMES = ("w_min", "w_max", "o_min", "o_max")
"""The four ratios."""

Metric = Literal["fpr95", "auroc"]
_WIDE = 50
_ZERO_BEFORE = 0.5


@dataclass(frozen=True, slots=True)
class RatioLine:
    """One side of one panel.

    Attributes:
        nearness: Mean over the ``near`` or over the ``far`` OOD sets.
        fpr95: FPR95 at each value, ID positive.
        auroc: AUROC at each value.
        energy_fpr95: FPR95 of the energy of the original head.
        energy_auroc: Its AUROC.

    """

    nearness: Nearness
    fpr95: tuple[float, ...]
    auroc: tuple[float, ...]
    energy_fpr95: float
    energy_auroc: float

    def metric(self, name: Metric) -> tuple[float, ...]:
        """Return the values of a metric."""
        return self.fpr95 if name == "fpr95" else self.auroc

    def energy(self, name: Metric) -> float:
        """Return a metric of the energy."""
        return self.energy_fpr95 if name == "fpr95" else self.energy_auroc


@dataclass(frozen=True, slots=True)
class RatioPanel:
    """What one ratio does.

    Attributes:
        ratio: Name of the ratio, such as ``w_min``.
        values: The values tried, ascending.
        lines: Near, then far, of those that there are.
        chosen: The value that opnp chose on this model, or None where that is not known.
        is_log: Whether the axis is logarithmic, with zero half a decade before the smallest value.
        is_shaped: Whether opnp chose to shape the features as well, which the curves do without.

    """

    ratio: str
    values: tuple[float, ...]
    lines: tuple[RatioLine, ...]
    chosen: float | None
    is_log: bool
    is_shaped: bool = False

    @property
    def chosen_text(self) -> str:
        """What was chosen, in words; empty where that is not known."""
        if self.chosen is None:
            return ""
        return f"chosen {ratio_text(self.chosen)}" + (", without the shaping" if self.is_shaped else "")

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
class RatioSeries:
    """What each ratio does by itself.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        panels: One for each ratio that was swept.

    """

    model: str
    title: str
    alt: str
    panels: tuple[RatioPanel, ...]


def chosen_ratios(settings: Mapping[str, object]) -> dict[str, float]:
    """Return the ratios in the settings of a row, empty where they are none, or those of one of several scores.

    Example:
        >>> chosen_ratios({"ratios": {"w_min": 0.3, "w_max": 0, "o_min": 0, "o_max": 0}, "score": "energy"})["w_min"]
        0.3
        >>> chosen_ratios({"ratios": "auto"}), chosen_ratios({"members": ["gen", "opnp"], "ratios": {"w_min": 0.5}})
        ({}, {})

    """
    ratios = settings.get("ratios")
    if not isinstance(ratios, Mapping) or fused_members(settings):
        return {}
    return {name: float(value) for name, value in ratios.items() if isinstance(value, int | float)}


def has_shaping(settings: Mapping[str, object] | None) -> bool:
    """Return whether the settings of a row shape the features that it scores; a fusion does for some scores only.

    Example:
        >>> has_shaping({"shaping": {"name": "scale", "quantile": 0.9}}), has_shaping({"shaping": None})
        (True, False)

    """
    return isinstance((settings or {}).get("shaping"), Mapping) and not fused_members(settings or {})


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
        lines = tuple(line for side in ("near", "far") if (line := _line(model.energy, points, side)) is not None)
        if points and lines:
            values = tuple(float(point.varied[ratio]) for point in points)
            panels.append(RatioPanel(ratio, values, lines, chosen.get(ratio), _is_wide(values), has_shaping(settings)))
    if not panels:
        return None
    return RatioSeries(model=model.model, title=_title(panels), alt=_alt(panels), panels=tuple(panels))


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


def _line(energy: SweepPoint, points: Sequence[SweepPoint], side: Nearness) -> RatioLine | None:
    means = [point.near if side == "near" else point.far for point in points]
    reference = energy.near if side == "near" else energy.far
    given = [mean for mean in means if mean is not None]
    if reference is None or not given or len(given) < len(means):
        return None
    return RatioLine(
        nearness=side,
        fpr95=tuple(mean.fpr95 for mean in given),
        auroc=tuple(mean.auroc for mean in given),
        energy_fpr95=reference.fpr95,
        energy_auroc=reference.auroc,
    )


def _is_wide(values: Sequence[float]) -> bool:
    filled = [value for value in values if value > 0]
    return len(filled) > 2 and max(filled) >= _WIDE * min(filled)


def _best(panels: Sequence[RatioPanel], side: Nearness) -> tuple[float, float, str, float] | None:
    """Return the best AUROC of one ratio alone, that of the energy, and which ratio at which value it was."""
    found = [
        (auroc, line.energy_auroc, panel.ratio, value)
        for panel in panels
        for line in panel.lines
        if line.nearness == side
        for auroc, value in zip(line.auroc, panel.values, strict=True)
    ]
    return max(found, key=lambda each: each[0], default=None)


def _sentences(panels: Sequence[RatioPanel]) -> list[str]:
    parts = []
    for side in ("far", "near"):
        if (best := _best(panels, side)) is not None:
            auroc, energy, ratio, value = best
            gain = "no ratio gains" if value == 0 or percent(auroc) == percent(energy) else ""
            at_best = f"{percent(auroc)} at rho_{ratio} = {ratio_text(value)}"
            parts.append(f"{side} AUROC {gain or at_best} (Energy {percent(energy)})")
    return parts


def _title(panels: Sequence[RatioPanel]) -> str:
    return f"One ratio alone, at best: {'; '.join(_sentences(panels))}"


def _alt(panels: Sequence[RatioPanel]) -> str:
    ranges = [
        f"rho_{panel.ratio} from {ratio_text(panel.values[0])} to {ratio_text(panel.values[-1])}, {line.nearness}: "
        f"AUROC {percent(min(line.auroc))} to {percent(max(line.auroc))}, FPR95 {percent(min(line.fpr95))} to "
        f"{percent(max(line.fpr95))}"
        for panel in panels
        for line in panel.lines
    ]
    return f"FPR95 and AUROC against each ratio by itself. {'; '.join(_sentences(panels))}. {'; '.join(ranges)}."

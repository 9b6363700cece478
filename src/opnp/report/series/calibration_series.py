"""Confidence histogram and reliability diagram before and after pruning: the paper's Figure 4."""

from collections.abc import Mapping
from dataclasses import dataclass

from opnp.report.results import ReportedRow
from opnp.report.series.ratio_series import chosen_ratios
from opnp.report.series.wording import fused_members, percent
from opnp.values.figures import ClassifierFigures

__all__ = ["CalibrationPanel", "CalibrationSeries", "calibration_series"]


@dataclass(frozen=True, slots=True)
class CalibrationPanel:
    """Confidence and accuracy of one head on the ID samples, by bins of equal width over (0, 1].

    Attributes:
        name: ``before`` or ``after``.
        accuracy: Share of right answers.
        ece: Expected calibration error.
        edges: Edges of the bins, from 0 to 1.
        counts: Samples by bin.
        confidence: Mean confidence by bin; None where it is empty.
        right: Share of right answers by bin; None where it is empty.

    """

    name: str
    accuracy: float
    ece: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    right: tuple[float | None, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the samples by bin."""
        return tuple(count / sum(self.counts) for count in self.counts)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence over all samples."""
        pairs = zip(self.counts, self.confidence, strict=True)
        return sum(count * value for count, value in pairs if value is not None) / sum(self.counts)


@dataclass(frozen=True, slots=True)
class CalibrationSeries:
    """Calibration before and after.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        method: Name of the row.
        change: What is between before and after: ``pruning``, ``shaping`` or ``shaping and pruning``.
        panels: Before, and after where there are figures of it.

    """

    model: str
    title: str
    alt: str
    method: str
    change: str
    panels: tuple[CalibrationPanel, ...]


def calibration_series(model: str, row: ReportedRow) -> CalibrationSeries | None:
    """Return the calibration of a row, before and after; None where the record has none, and for a fusion.

    A fusion is read off no one head: there is nothing before and after it.

    Args:
        model: Name of the model.
        row: The method.

    Returns:
        What is drawn.

    """
    given = {"before": row.before, "after": row.after}
    panels = tuple(_panel(name, figures) for name, figures in given.items() if figures is not None)
    if row.before is None or fused_members(row.settings) or any(not sum(panel.counts) for panel in panels):
        return None
    change = _change(row.settings)
    parts = [
        f"{panel.name} {change}: ECE {percent(panel.ece)}, accuracy {percent(panel.accuracy)}, mean confidence "
        f"{percent(panel.mean_confidence)}"
        for panel in panels
    ]
    return CalibrationSeries(
        model=model,
        title=_title(row.before, row.after, change),
        alt=f"Confidence histogram and reliability diagram of the head, {'; '.join(parts)}.",
        method=row.method,
        change=change,
        panels=panels,
    )


def _panel(name: str, figures: ClassifierFigures) -> CalibrationPanel:
    bins = len(figures.bin_count)
    filled = [count > 0 for count in figures.bin_count]
    return CalibrationPanel(
        name=name,
        accuracy=figures.accuracy,
        ece=figures.ece,
        edges=tuple(place / bins for place in range(bins + 1)),
        counts=figures.bin_count,
        confidence=_where(filled, figures.bin_confidence),
        right=_where(filled, figures.bin_accuracy),
    )


def _where(filled: list[bool], values: tuple[float, ...]) -> tuple[float | None, ...]:
    return tuple(value if is_filled else None for value, is_filled in zip(values, filled, strict=True))


def _change(settings: Mapping[str, object]) -> str:
    """Return what the settings of a row do to the logits."""
    is_shaped = settings.get("shaping") not in (None, "none")
    is_pruned = any(chosen_ratios(settings).values())
    return "shaping and pruning" if is_shaped and is_pruned else "shaping" if is_shaped else "pruning"


def _title(before: ClassifierFigures, after: ClassifierFigures | None, change: str) -> str:
    if after is None:
        return f"ECE {percent(before.ece)} of the original head"
    texts = percent(before.ece), percent(after.ece)
    if texts[0] == texts[1]:
        verb = "leave" if " and " in change else "leaves"
        return f"{change.capitalize()} {verb} the calibration error at {texts[0]} (ECE)"
    is_plural = " and " in change
    verb = ("lower" if after.ece < before.ece else "raise") + ("" if is_plural else "s")
    return f"{change.capitalize()} {verb} the calibration error (ECE) from {texts[0]} to {texts[1]}"

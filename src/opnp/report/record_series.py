"""Data of the figures that a record holds by itself: sensitivities, pruning, calibration, ranking of the methods."""

from collections.abc import Mapping
from dataclasses import dataclass

from opnp.report.palette import Role
from opnp.report.results import ReportedModel, ReportedRow
from opnp.report.wording import chosen_ratios, fused_members, listed, percent
from opnp.values.figures import ClassifierFigures, Nearness
from opnp.values.pictures import ModelPictures, NeuronPicture, SensitivityPicture, WeightPicture

__all__ = [
    "CalibrationPanel",
    "CalibrationSeries",
    "PruningSeries",
    "RankingSeries",
    "SensitivityPanel",
    "SensitivitySeries",
    "Series",
    "calibration_series",
    "pruning_series",
    "ranking_series",
    "sensitivity_series",
]

_LONG_TAIL = 30
"""Largest count over the median of the filled bins from which on counts are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn, before any drawing.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.

    """

    model: str
    title: str
    alt: str


@dataclass(frozen=True, slots=True)
class SensitivityPanel:
    """The sensitivities of the weights, or of the neurons.

    Attributes:
        name: ``weights`` or ``neurons``.
        picture: Their spread, as recorded.

    """

    name: str
    picture: SensitivityPicture

    @property
    def is_log(self) -> bool:
        """Whether counts are drawn on a logarithmic axis."""
        filled = sorted(count for count in self.picture.total if count > 0)
        return bool(filled) and filled[-1] > _LONG_TAIL * filled[len(filled) // 2]

    @property
    def removed_text(self) -> str:
        """What is removed, in words."""
        parts = [
            f"{percent(sum(removed) / sum(self.picture.total))} {which}"
            for which, removed in (("lowest", self.picture.lowest), ("highest", self.picture.highest))
            if sum(removed)
        ]
        return f"{listed(parts)} removed" if parts else "none removed"


@dataclass(frozen=True, slots=True)
class SensitivitySeries(Series):
    """How the sensitivities of a head are spread, and which are removed: the paper's Figure 1.

    Attributes:
        panels: Weights, then neurons.

    """

    panels: tuple[SensitivityPanel, ...]


def sensitivity_series(pictures: ModelPictures) -> SensitivitySeries:
    """Return the spread of the sensitivities of a head."""
    weights, neurons = pictures.weight_sensitivity, pictures.neuron_sensitivity
    panels = SensitivityPanel("weights", weights), SensitivityPanel("neurons", neurons)
    parts = [
        f"{panel.name}: {sum(panel.picture.total)}, mean {percent(panel.picture.mean)} of the maximum, "
        f"{panel.removed_text}"
        for panel in panels
    ]
    return SensitivitySeries(
        model=pictures.model,
        title=f"The mean weight has {percent(weights.mean)} of the largest sensitivity, the mean neuron "
        f"{percent(neurons.mean)}",
        alt=f"Histograms of the sensitivities, the maximum scaled to 1. {'; '.join(parts)}.",
        panels=panels,
    )


@dataclass(frozen=True, slots=True)
class PruningSeries(Series):
    """Weights and neurons of a head before and after pruning: the paper's Figure 2.

    Attributes:
        weights: The weights, as recorded.
        neurons: The neurons, as recorded.

    """

    weights: WeightPicture
    neurons: NeuronPicture

    @property
    def removed_ranks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and one past the last rank of the neurons removed for the smallest and for the largest sensitivity."""
        neurons = self.neurons
        return (0, neurons.removed_lowest), (neurons.neurons - neurons.removed_highest, neurons.neurons)


def pruning_series(pictures: ModelPictures) -> PruningSeries:
    """Return weights and neurons of a head before and after pruning."""
    weights, neurons = pictures.weights, pictures.neurons
    gone = 1 - sum(weights.after) / sum(weights.before)
    removed = neurons.removed_lowest + neurons.removed_highest
    title = f"Pruning removes {percent(gone)} of the weights and {removed} of {neurons.neurons} neurons"
    return PruningSeries(
        model=pictures.model,
        title=title,
        alt=f"{title}: {neurons.removed_lowest} neurons for the smallest and {neurons.removed_highest} for the "
        f"largest sensitivity; {sum(weights.before) - sum(weights.after)} of {sum(weights.before)} weights. Histogram "
        f"of the weights before and after with the sensitivity by value; norm and sensitivity of the neurons in the "
        f"order of their sensitivity.",
        weights=weights,
        neurons=neurons,
    )


@dataclass(frozen=True, slots=True)
class CalibrationPanel:
    """Confidence and accuracy of one head on the ID samples, by bins of equal width over (0, 1].

    Attributes:
        name: ``before`` or ``after``.
        figures: Its figures, as recorded.

    """

    name: str
    figures: ClassifierFigures

    @property
    def edges(self) -> tuple[float, ...]:
        """Edges of the bins, from 0 to 1."""
        bins = len(self.figures.bin_count)
        return tuple(place / bins for place in range(bins + 1))

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the samples by bin."""
        counts = self.figures.bin_count
        return tuple(count / sum(counts) for count in counts)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence over all samples."""
        counts = self.figures.bin_count
        pairs = zip(counts, self.figures.bin_confidence, strict=True)
        return sum(count * value for count, value in pairs) / sum(counts)

    @property
    def confidence(self) -> tuple[float | None, ...]:
        """Mean confidence by bin; None where it is empty."""
        return self._where_filled(self.figures.bin_confidence)

    @property
    def right(self) -> tuple[float | None, ...]:
        """Share of right answers by bin; None where it is empty."""
        return self._where_filled(self.figures.bin_accuracy)

    def _where_filled(self, values: tuple[float, ...]) -> tuple[float | None, ...]:
        pairs = zip(self.figures.bin_count, values, strict=True)
        return tuple(value if count > 0 else None for count, value in pairs)


@dataclass(frozen=True, slots=True)
class CalibrationSeries(Series):
    """Confidence histogram and reliability diagram before and after pruning: the paper's Figure 4.

    Attributes:
        change: What is between before and after: ``pruning``, ``shaping`` or ``shaping and pruning``.
        panels: Before, and after where there are figures of it.

    """

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
    panels = tuple(CalibrationPanel(name, figures) for name, figures in given.items() if figures is not None)
    if row.before is None or fused_members(row.settings) or any(not sum(each.figures.bin_count) for each in panels):
        return None
    change = _change(row.settings)
    parts = [
        f"{panel.name} {change}: ECE {percent(panel.figures.ece)}, accuracy {percent(panel.figures.accuracy)}, mean "
        f"confidence {percent(panel.mean_confidence)}"
        for panel in panels
    ]
    return CalibrationSeries(
        model=model,
        title=_calibration_title(row.before, row.after, change),
        alt=f"Confidence histogram and reliability diagram of the head, {'; '.join(parts)}.",
        change=change,
        panels=panels,
    )


def _change(settings: Mapping[str, object]) -> str:
    """Return what the settings of a row do to the logits."""
    is_shaped = settings.get("shaping") not in (None, "none")
    is_pruned = any(chosen_ratios(settings).values())
    return "shaping and pruning" if is_shaped and is_pruned else "shaping" if is_shaped else "pruning"


def _calibration_title(before: ClassifierFigures, after: ClassifierFigures | None, change: str) -> str:
    if after is None:
        return f"ECE {percent(before.ece)} of the original head"
    texts = percent(before.ece), percent(after.ece)
    ending = "" if " and " in change else "s"
    if texts[0] == texts[1]:
        return f"{change.capitalize()} leave{ending} the calibration error at {texts[0]} (ECE)"
    verb = "lower" if after.ece < before.ece else "raise"
    return f"{change.capitalize()} {verb}{ending} the calibration error (ECE) from {texts[0]} to {texts[1]}"


@dataclass(frozen=True, slots=True)
class RankingSeries(Series):
    """Methods in the order of how well they do, near and far OOD apart.

    Attributes:
        methods: The rows that ran, by mean AUROC over all OOD sets, the best first.
        failed: Names of the rows without figures.
        marked: Places of opnp as it is used and of the energy beside it, each with its role.

    """

    methods: tuple[ReportedRow, ...]
    failed: tuple[str, ...]
    marked: Mapping[int, Role]

    def values(self, side: Nearness, metric: str) -> list[float | None]:
        """Return a metric over the near, or over the far, sets by method; None where there are none."""
        means = [row.near if side == "near" else row.far for row in self.methods]
        return [None if mean is None else getattr(mean, metric) for mean in means]


def ranking_series(model: ReportedModel) -> RankingSeries | None:
    """Return the methods of a model in the order of their mean AUROC, or None where none ran."""
    ran = [(row.mean.auroc, row) for row in model.methods if row.mean is not None]
    if not ran:
        return None
    ran.sort(key=lambda each: (-each[0], each[1].method))
    methods = tuple(row for _, row in ran)
    parts = [f"{place}. {row.method} {percent(auroc)}" for place, (auroc, row) in enumerate(ran, 1)]
    title = f"{methods[0].method} has the highest mean AUROC, {percent(ran[0][0])}"
    roles: dict[str | None, Role] = {model.chosen: "chosen", model.baseline: "baseline"}
    places = [place for place, row in enumerate(methods, 1) if row.method == model.chosen]
    if places and places[0] > 1:
        title = f"{model.chosen} is {places[0]} of {len(methods)} by mean AUROC; {title}"
    return RankingSeries(
        model=model.model,
        title=title,
        alt=f"Methods by mean AUROC over the OOD sets. {title}. {', '.join(parts[:10])}"
        + (f", and {len(parts) - 10} more." if len(parts) > 10 else "."),
        methods=methods,
        failed=tuple(row.method for row in model.methods if row.mean is None),
        marked={place: roles[row.method] for place, row in enumerate(methods) if row.method in roles},
    )

"""How the sensitivities of weights and neurons are spread, and which are removed: the paper's Figure 1."""

from dataclasses import dataclass

from opnp.report.series.wording import listed, percent
from opnp.values.pictures import ModelPictures, SensitivityPicture

__all__ = ["SensitivityPanel", "SensitivitySeries", "sensitivity_series"]

_LONG_TAIL = 30
"""Largest count over the median of the filled bins from which on counts are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class SensitivityPanel:
    """The sensitivities of the weights, or of the neurons.

    Attributes:
        name: ``weights`` or ``neurons``.
        maximum: The largest sensitivity.
        mean: Mean, as a share of the maximum.
        edges: Edges of the bins, as shares of the maximum.
        counts: Entries by bin, before pruning.
        lowest: Entries removed for the smallest sensitivity, by bin.
        highest: Entries removed for the largest sensitivity, by bin.
        is_log: Whether counts are drawn on a logarithmic axis.

    """

    name: str
    maximum: float
    mean: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    is_log: bool

    @property
    def removed_text(self) -> str:
        """What is removed, in words."""
        parts = [
            f"{percent(sum(removed) / sum(self.counts))} {which}"
            for which, removed in (("lowest", self.lowest), ("highest", self.highest))
            if sum(removed)
        ]
        return f"{listed(parts)} removed" if parts else "none removed"


@dataclass(frozen=True, slots=True)
class SensitivitySeries:
    """The sensitivities of a head.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        panels: Weights, then neurons.

    """

    model: str
    title: str
    alt: str
    panels: tuple[SensitivityPanel, ...]


def sensitivity_series(pictures: ModelPictures) -> SensitivitySeries:
    """Return the spread of the sensitivities of a head."""
    panels = (_panel("weights", pictures.weight_sensitivity), _panel("neurons", pictures.neuron_sensitivity))
    parts = [
        f"{panel.name}: {sum(panel.counts)}, mean {percent(panel.mean)} of the maximum, {panel.removed_text}"
        for panel in panels
    ]
    return SensitivitySeries(
        model=pictures.model,
        title=f"The mean weight has {percent(panels[0].mean)} of the largest sensitivity, the mean neuron "
        f"{percent(panels[1].mean)}",
        alt=f"Histograms of the sensitivities, the maximum scaled to 1. {'; '.join(parts)}.",
        panels=panels,
    )


def _panel(name: str, picture: SensitivityPicture) -> SensitivityPanel:
    filled = sorted(count for count in picture.total if count > 0)
    return SensitivityPanel(
        name=name,
        maximum=picture.maximum,
        mean=picture.mean,
        edges=picture.edges,
        counts=picture.total,
        lowest=picture.lowest,
        highest=picture.highest,
        is_log=bool(filled) and filled[-1] > _LONG_TAIL * filled[len(filled) // 2],
    )

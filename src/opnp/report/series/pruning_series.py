"""Weights and neurons of a head before and after pruning: the paper's Figure 2."""

from dataclasses import dataclass

from opnp.report.series.wording import percent
from opnp.values.pictures import ModelPictures, NeuronPicture, WeightPicture

__all__ = ["PruningSeries", "pruning_series"]


@dataclass(frozen=True, slots=True)
class PruningSeries:
    """Weights and neurons before and after.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        weights: The weights, as recorded.
        neurons: The neurons, as recorded.

    """

    model: str
    title: str
    alt: str
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

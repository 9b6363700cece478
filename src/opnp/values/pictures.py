"""The record of what figures of a head and its inputs are drawn from: counts and thumbnails."""

from typing import ClassVar

from opnp.values.reading import LARGEST, Record, Share, Value

__all__ = [
    "BEYOND",
    "GalleryItem",
    "GallerySet",
    "MemberAnswer",
    "ModelPictures",
    "NeuronPicture",
    "PictureRecord",
    "SensitivityPicture",
    "WeightPicture",
]

BEYOND = LARGEST
"""The score that is recorded for +inf, which JSON does not have."""


class SensitivityPicture(Value, frozen=True):
    """How the sensitivities of a head's weights, or of its neurons, are spread: the paper's Figure 1.

    Attributes:
        maximum: The largest sensitivity; all others are given as shares of it.
        mean: Mean, as a share of the maximum.
        edges: Edges of the bins, ascending from 0 to 1, one more than there are bins.
        kept: Entries that stay, by bin.
        lowest: Entries removed for the smallest sensitivity, by bin.
        highest: Entries removed for the largest sensitivity, by bin.

    """

    maximum: float
    mean: float
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """Entries before pruning, by bin."""
        return tuple(map(sum, zip(self.kept, self.lowest, self.highest, strict=True)))


class WeightPicture(Value, frozen=True):
    """The weights of a head before and after pruning: the paper's Figure 2.

    Attributes:
        edges: Edges of the bins of the weights' values, ascending, one more than there are bins.
        before: Weights by bin.
        after: Weights that stay, by bin, pruned neurons' columns counted as removed.
        sensitivity: Mean sensitivity by bin, as a share of the largest of all weights; None where a bin is empty.

    """

    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sensitivity: tuple[float | None, ...]


class NeuronPicture(Value, frozen=True):
    """The neurons of a head in the order of their sensitivity, with what is removed: the paper's Figure 2.

    Attributes:
        neurons: How many there are.
        removed_lowest: How many are removed for the smallest sensitivity.
        removed_highest: How many are removed for the largest.
        ranks: Ranks that are drawn, ascending from 0: all of them, or evenly spread ones where there are many.
        sensitivity: Sensitivity at these ranks, as a share of the largest.
        norm_before: Euclidean norm of the weight's column at these ranks.
        norm_after: The same of the pruned weight.

    """

    neurons: int
    removed_lowest: int
    removed_highest: int
    ranks: tuple[int, ...]
    sensitivity: tuple[float, ...]
    norm_before: tuple[float, ...]
    norm_after: tuple[float, ...]


class MemberAnswer(Value, frozen=True):
    """What one of the scores that a detector fuses says of an input.

    Attributes:
        name: Name of the score.
        p_value: Its p-value by itself, not adjusted for the number of members.
        share: Its share of the fused score; those of an input sum to 1.

    """

    name: str
    p_value: Share
    share: Share


class GalleryItem(Value, frozen=True):
    """One input of a gallery.

    Attributes:
        name: Name of its file, or its place in one.
        index: Its row in the set.
        score: Larger = more OOD; `BEYOND` where it is +inf.
        p_value: Conformal p-value, or None where the detector is not calibrated.
        is_ood: Whether it is flagged, or None.
        predicted_class: Class that the original head answers.
        predicted_name: Name of that class, or None where there are only numbers.
        true_class: Its label, or None.
        image: Thumbnail as a data URI (``data:image/...;base64,...``).
        members: What each member of a fusion says; empty where that is not recorded.

    """

    name: str
    index: int
    score: float
    p_value: Share | None
    is_ood: bool | None
    predicted_class: int
    predicted_name: str | None
    true_class: int | None
    image: str
    members: tuple[MemberAnswer, ...] = ()


class GallerySet(Value, frozen=True):
    """The inputs of one set that are most easily taken for the other kind.

    Attributes:
        set: ``test``, whose most OOD-looking inputs are shown, or ``ood_*``, whose most ID-looking ones are.
        items: The inputs, the most mistaken first.

    """

    set: str
    items: tuple[GalleryItem, ...]


class ModelPictures(Value, frozen=True):
    """What is drawn of one detector on one model.

    Attributes:
        model: Name of the model.
        method: Name of the detector, as in the table of methods.
        weight_sensitivity: Spread of the weights' sensitivities.
        neuron_sensitivity: Spread of the neurons' sensitivities.
        weights: Weights before and after.
        neurons: Neurons before and after.
        gallery: Inputs that are easily mistaken; empty where the inputs are no images or not at hand.

    """

    model: str
    method: str
    weight_sensitivity: SensitivityPicture
    neuron_sensitivity: SensitivityPicture
    weights: WeightPicture
    neurons: NeuronPicture
    gallery: tuple[GallerySet, ...] = ()


class PictureRecord(Record, frozen=True):
    """What is drawn of each model.

    Attributes:
        models: Pictures by model, in the order of the record of results beside it.

    Example:
        >>> PictureRecord.from_json(PictureRecord(models=()).to_json())
        PictureRecord(models=())

    """

    record_version: ClassVar[int] = 1
    subject: ClassVar[str] = "pictures"
    remedy: ClassVar[str] = ": make it again"

    models: tuple[ModelPictures, ...]

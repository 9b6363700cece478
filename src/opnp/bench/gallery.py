"""What a report draws of a detector's head, and the inputs that it mistakes most easily, as thumbnails."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opnp.bench.features import ModelData
from opnp.core import Masks, neuron_mask, pruned_weight, weight_mask
from opnp.data import InputSet
from opnp.detector import OPNP, Explanation, Verdict
from opnp.values.pictures import (
    BEYOND,
    GalleryItem,
    GallerySet,
    MemberAnswer,
    ModelPictures,
    NeuronPicture,
    SensitivityPicture,
    WeightPicture,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["detector_pictures", "gallery_set", "model_gallery", "thumbnail"]

_BINS = 100
_RANKS = 512
"""Neurons that are drawn one by one, at most."""

_ITEMS = 12
_SIDE = 96
_SMALL = 32


def detector_pictures(detector: OPNP, weight: Tensor, *, model: str, method: str) -> ModelPictures:
    """Return what the figures of a detector's head are drawn from; the gallery is empty.

    Args:
        detector: A fitted detector.
        weight: Weight of the head that it was fitted on, shape ``(classes, features)``.
        model: Name of the model.
        method: Name of the detector in the table of methods.

    Example:
        >>> from opnp import Ratios
        >>> weight, features = torch.eye(4), torch.eye(4)[torch.arange(40) % 4] * torch.arange(40.0)[:, None]
        >>> detector = OPNP(ratios=Ratios(w_min=0.25)).fit_features(features, weight=weight, bias=None)
        >>> pictures = detector_pictures(detector, weight, model="four classes", method="OPNP")
        >>> sum(pictures.weight_sensitivity.lowest), sum(pictures.weights.before), sum(pictures.weights.after)
        (4, 16, 12)

    """
    sensitivity, settings, masks = detector.sensitivity, detector.settings, detector.masks
    weight = weight.detach().double().cpu()
    neuron = sensitivity.neuron(settings.neuron).cpu()
    low_weights = ~weight_mask(sensitivity.weight, lowest=settings.ratios.w_min, scope=settings.scope).cpu()
    low_neurons = ~neuron_mask(neuron, lowest=settings.ratios.o_min)
    return ModelPictures(
        model=model,
        method=method,
        weight_sensitivity=_spread(sensitivity.weight.cpu(), kept=masks.weight.cpu(), lowest=low_weights),
        neuron_sensitivity=_spread(neuron, kept=masks.neuron.cpu(), lowest=low_neurons),
        weights=_weights(weight, sensitivity.weight.cpu(), masks),
        neurons=_neurons(weight, neuron, masks, lowest=low_neurons),
    )


def _spread(values: Tensor, *, kept: Tensor, lowest: Tensor) -> SensitivityPicture:
    maximum, shares = _shares(values)
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)
    return SensitivityPicture(
        maximum=maximum,
        mean=float(shares.mean()),
        edges=tuple(edges.tolist()),
        kept=_counts(shares[kept], edges),
        lowest=_counts(shares[lowest], edges),
        highest=_counts(shares[~kept & ~lowest], edges),
    )


def _shares(values: Tensor) -> tuple[float, Tensor]:
    """Return the largest value, and all values as shares of it."""
    maximum = float(values.max())
    return maximum, values.double() / (maximum or 1.0)


def _weights(weight: Tensor, sensitivity: Tensor, masks: Masks) -> WeightPicture:
    low, high = float(weight.min()), float(weight.max())
    if low == high:  # one bin must have a width
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    bins = _bins(weight.flatten(), edges)
    counts = torch.bincount(bins, minlength=_BINS)
    sums = torch.bincount(bins, weights=sensitivity.double().flatten(), minlength=_BINS)
    maximum = float(sensitivity.max())
    means = [
        float(total / count / maximum) if count > 0 and maximum > 0 else None
        for total, count in zip(sums, counts, strict=True)
    ]
    kept = masks.weight.cpu() & masks.neuron.cpu()
    return WeightPicture(
        edges=tuple(edges.tolist()),
        before=tuple(counts.tolist()),
        after=_counts(weight[kept], edges),
        sensitivity=tuple(means),
    )


def _neurons(weight: Tensor, sensitivity: Tensor, masks: Masks, *, lowest: Tensor) -> NeuronPicture:
    order = torch.argsort(sensitivity, stable=True)
    ranks = torch.linspace(0, len(order) - 1, min(len(order), _RANKS), dtype=torch.float64).round().long()
    shown = order[ranks]
    _, shares = _shares(sensitivity)
    pruned = pruned_weight(weight, Masks(weight=masks.weight.cpu(), neuron=masks.neuron.cpu()))
    removed = int((~masks.neuron).sum())
    return NeuronPicture(
        neurons=len(order),
        removed_lowest=int(lowest.sum()),
        removed_highest=removed - int(lowest.sum()),
        ranks=tuple(ranks.tolist()),
        sensitivity=tuple(shares[shown].tolist()),
        norm_before=tuple(weight.norm(dim=0)[shown].tolist()),
        norm_after=tuple(pruned.norm(dim=0)[shown].tolist()),
    )


def gallery_set(
    name: str,
    verdict: Verdict,
    *,
    index: Tensor,
    explain: Callable[[Tensor], Explanation] | None = None,
    labels: Tensor | None = None,
    image_of: Callable[[int], "Image"],
    name_of: Callable[[int], str],
    class_names: Sequence[str] | None = None,
    count: int = _ITEMS,
) -> GallerySet:
    """Return the images of a set with the largest scores, if it is ``test``, or the smallest, if it is OOD.

    Args:
        name: ``test`` or ``ood_*``.
        verdict: What a calibrated detector says of each of some rows.
        index: These rows of the set, shape ``(samples,)``.
        explain: What the members say of some of these rows, given by their places; None where there are none.
        labels: Their true classes, or None.
        image_of: The image of a row.
        name_of: The name of a row.
        class_names: Names of the model's classes, where they are known.
        count: How many images, at most.

    Example:
        >>> from PIL import Image
        >>> zeros, scores = torch.zeros(3, dtype=torch.int64), torch.tensor([0.5, -1.0, 2.0])
        >>> found = gallery_set(
        ...     "ood_noise",
        ...     Verdict(zeros, scores, p_value=torch.ones(3), is_ood=scores > 1),
        ...     index=torch.arange(3),
        ...     image_of=lambda row: Image.new("L", (8, 8), row),
        ...     name_of="image {}".format,
        ...     count=2,
        ... )
        >>> [(item.name, item.score) for item in found.items]
        [('image 1', -1.0), ('image 0', 0.5)]

    """
    items = []
    places = verdict.score.argsort(descending=name == "test", stable=True)[:count]
    answers = [()] * len(places) if explain is None else _answers(explain(places))
    for place, members in zip(places.tolist(), answers, strict=True):
        row, predicted = int(index[place]), int(verdict.predicted_class[place])
        item = GalleryItem(
            name=name_of(row),
            index=row,
            score=min(float(verdict.score[place]), BEYOND),
            p_value=float(verdict.p_value[place]),
            is_ood=bool(verdict.is_ood[place]),
            predicted_class=predicted,
            predicted_name=None if class_names is None or predicted >= len(class_names) else class_names[predicted],
            true_class=None if labels is None else int(labels[place]),
            image=thumbnail(image_of(row)),
            members=members,
        )
        items.append(item)
    return GallerySet(set=name, items=tuple(items))


def _answers(explanation: Explanation) -> list[tuple[MemberAnswer, ...]]:
    """Return what the members say of each row."""
    columns = zip(explanation.p_value.tolist(), explanation.share.tolist(), strict=True)
    return [
        tuple(
            MemberAnswer(name, p_value, min(share, 1.0))
            for name, p_value, share in zip(explanation.members, p_values, shares, strict=True)
        )
        for p_values, shares in columns
    ]


def thumbnail(image: "Image") -> str:
    """Return an image as a data URI, at most 96 pixels a side; one of fewer than 32 is enlarged in whole steps."""
    from PIL.Image import Resampling

    image = image.convert("RGB")
    if max(image.size) < _SMALL:
        step = _SIDE // max(image.size)
        image = image.resize((image.width * step, image.height * step), Resampling.NEAREST)
    else:
        image.thumbnail((_SIDE, _SIDE), Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def model_gallery(
    detector: OPNP, model: ModelData, inputs: Mapping[str, InputSet], *, rows: Tensor
) -> tuple[GallerySet, ...]:
    """Return the most OOD-looking images of ``test``, and the most ID-looking ones of every OOD set.

    Args:
        detector: The product, fitted and calibrated on features of the model.
        model: The features.
        inputs: What they were made of, by set: ``test`` and ``ood_*``. Sets that hold no images, or another number of
            inputs than there are features, are left out.
        rows: Rows of ``test`` that the detector was not given for validation.

    """
    return tuple(
        _gallery(name, detector, model, inputs[name], rows if name == "test" else torch.arange(len(features)))
        for name, features in model.judged.items()
        if name in inputs and inputs[name].source.kind == "image" and len(inputs[name].readable) == len(features)
    )


def _gallery(name: str, detector: OPNP, model: ModelData, inputs: InputSet, index: Tensor) -> GallerySet:
    labels, readable = model.test.labels if name == "test" else None, inputs.readable
    features = model.judged[name][index]
    return gallery_set(
        name,
        detector.verdict_features(features),
        index=index,
        explain=(lambda places: detector.explain_features(features[places])) if detector.settings.is_fusion else None,
        labels=None if labels is None else labels[index],
        image_of=lambda row: inputs.source.sample(int(readable[row])),
        name_of=lambda row: inputs.names[int(readable[row])],
        class_names=inputs.source.class_names if name == "test" else None,
    )


def _bins(values: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each value: the left edge belongs to it, and the last bin has both."""
    return (torch.bucketize(values, edges, right=True) - 1).clamp(0, len(edges) - 2)


def _counts(values: Tensor, edges: Tensor) -> tuple[int, ...]:
    return tuple(torch.bincount(_bins(values.flatten(), edges), minlength=len(edges) - 1).tolist())

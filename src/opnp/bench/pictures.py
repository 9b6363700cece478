"""What figures of a fitted detector's head are drawn from: its sensitivities and weights, counted into bins."""

import torch
from torch import Tensor

from opnp.bench.picture_record import ModelPictures, NeuronPicture, SensitivityPicture, WeightPicture
from opnp.core import Masks, Sensitivity, neuron_mask, pruned_weight, weight_mask
from opnp.detector import OPNP, Settings

__all__ = ["detector_pictures"]

_BINS = 100
_RANKS = 512
"""Neurons that are drawn one by one, at most."""


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
    low_weights, low_neurons = _removed_lowest(sensitivity, settings)
    return ModelPictures(
        model=model,
        method=method,
        weight_sensitivity=_spread(sensitivity.weight.cpu(), kept=masks.weight.cpu(), lowest=low_weights),
        neuron_sensitivity=_spread(neuron, kept=masks.neuron.cpu(), lowest=low_neurons),
        weights=_weights(weight, sensitivity.weight.cpu(), masks),
        neurons=_neurons(weight, neuron, masks, lowest=low_neurons),
    )


def _removed_lowest(sensitivity: Sensitivity, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return which weights and neurons are removed for the smallest sensitivity: True = removed."""
    ratios = settings.ratios
    weights = weight_mask(sensitivity.weight, lowest=ratios.w_min, scope=settings.scope)
    return ~weights.cpu(), ~neuron_mask(sensitivity.neuron(settings.neuron), lowest=ratios.o_min).cpu()


def _spread(values: Tensor, *, kept: Tensor, lowest: Tensor) -> SensitivityPicture:
    maximum = float(values.max())
    shares = values.double() / maximum if maximum > 0 else torch.zeros_like(values, dtype=torch.float64)
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)
    return SensitivityPicture(
        maximum=maximum,
        mean=float(shares.mean()),
        edges=tuple(edges.tolist()),
        kept=_counts(shares[kept], edges),
        lowest=_counts(shares[lowest], edges),
        highest=_counts(shares[~kept & ~lowest], edges),
    )


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
    maximum = float(sensitivity.max())
    shares = sensitivity.double() / maximum if maximum > 0 else torch.zeros_like(sensitivity, dtype=torch.float64)
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


def _bins(values: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each value: the left edge belongs to it, and the last bin has both."""
    return (torch.bucketize(values, edges, right=True) - 1).clamp(0, len(edges) - 2)


def _counts(values: Tensor, edges: Tensor) -> tuple[int, ...]:
    return tuple(torch.bincount(_bins(values.flatten(), edges), minlength=len(edges) - 1).tolist())

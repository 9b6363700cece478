"""Masks from sensitivities: which weights and neurons of a layer stay.

A share `lowest` of the entries with the smallest and a share `highest` of those with the largest sensitivity are
removed. The count is ``round(share * n)`` with Python's round. Ties keep index order, as a stable ascending sort would
have them: among equals the first indices count as smaller. The selection is by k-th value, not by a sort, so that a
head of 21 843 x 2 048 weights is a matter of seconds.

Entries that agree with the one at the cut to 2^-38 of it count as equal to it. Float64 sums taken in another order
differ by less, so that duplicated neurons fall the same way in any order. Sensitivities that underflowed are zeros, and
ties like any other: a cut among them is warned of (`warn_of_lost_order`).

Source: Chen et al., NeurIPS 2023, step 2 of the method; rho_min and rho_max are `lowest` and `highest` here.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, require_finite
from opnp.core.sensitivity import NeuronReading, Sensitivity
from opnp.errors import InputTypeError, OptionError, RatioError, RatioWarning, ShapeError
from opnp.values.settings import Scope

__all__ = [
    "Masks",
    "Scope",
    "keep_mask",
    "layer_masks",
    "neuron_mask",
    "pruned_count",
    "pruned_weight",
    "warn_of_lost_order",
    "weight_mask",
]

_EQUAL_WITHIN = 2.0**-38
"""Sensitivities this close to the cut, relative to it, count as equal to it (3.6e-12; far above float64 rounding)."""


class Masks(NamedTuple):
    """What stays of the last layer: True = keep.

    Attributes:
        weight: Mask of the weights, shape ``(classes, features)``, bool.
        neuron: Mask of the neurons, shape ``(features,)``, bool.

    """

    weight: Tensor
    neuron: Tensor

    @property
    def kept(self) -> Tensor:
        """The two masks together, shape ``(classes, features)``: a weight stays if it and its neuron stay."""
        return self.weight & self.neuron


def pruned_count(share: float, entries: int, *, name: str = "share") -> int:
    """Return how many of `entries` a share removes: ``round(share * entries)``, Python's round (half to even).

    Args:
        share: Fraction of the entries, in [0, 1).
        entries: Number of entries, at least 1.
        name: Name of the ratio, for messages.

    Returns:
        The count, from 0 to `entries`.

    Raises:
        OptionError: If `share` lies outside [0, 1).

    Warns:
        RatioWarning: If a share above 0 removes no entry.

    Example:
        >>> pruned_count(0.5, 7), pruned_count(0.0, 7)
        (4, 0)

    """
    share = checked_fraction(share, name=name, is_zero_allowed=True)
    count = round(share * entries)
    if share > 0 and count == 0:
        warnings.warn(
            f"`{name}` = {share:g} of {entries} entries rounds to none: nothing is pruned by it. Use at least "
            f"{0.5 / entries:.3g}, or 0 to say so.",
            RatioWarning,
            stacklevel=2,
        )
    return count


def keep_mask(sensitivity: Tensor, *, lowest: float = 0.0, highest: float = 0.0, name: str = "") -> Tensor:
    """Return which entries of each row stay when its lowest and highest shares are removed.

    Args:
        sensitivity: One ranking a row, shape ``(rows, entries)``, finite.
        lowest: Share of each row to remove from the bottom, in [0, 1).
        highest: Share of each row to remove from the top, in [0, 1).
        name: Prefix of the two names in messages, such as ``"w_"``.

    Returns:
        True = keep, shape ``(rows, entries)``, bool, on the device of `sensitivity`.

    Raises:
        ShapeError: If `sensitivity` is no matrix, or has no entries.
        NonFiniteError: If it holds NaN or infinite values.
        RatioError: If the two shares together leave no entry.

    Warns:
        RatioWarning: If a share above 0 removes no entry.

    Example:
        Among the equal entries the first counts as the smallest:

        >>> import torch
        >>> keep_mask(torch.tensor([[3.0, 1.0, 1.0, 5.0]]), lowest=0.25, highest=0.25).tolist()
        [[True, False, True, False]]

    """
    if sensitivity.ndim != 2 or sensitivity.shape[1] == 0:
        raise ShapeError(f"`sensitivity` must have shape (rows, entries), got {tuple(sensitivity.shape)}.")
    require_finite(sensitivity, name="sensitivity")
    entries = sensitivity.shape[1]
    low, high = (f"{name}min", f"{name}max") if name else ("lowest", "highest")
    bottom, top = pruned_count(lowest, entries, name=low), pruned_count(highest, entries, name=high)
    if bottom + top >= entries:
        raise RatioError(
            f"`{low}` = {lowest:g} and `{high}` = {highest:g} remove {bottom} + {top} of {entries} entries: at "
            f"least one must be left. Lower one of them.",
        )
    keep = torch.ones_like(sensitivity, dtype=torch.bool)
    if bottom:
        keep &= ~_smallest(sensitivity, bottom)
    if top:
        keep &= _smallest(sensitivity, entries - top)
    return keep


def weight_mask(sensitivity: Tensor, *, lowest: float = 0.0, highest: float = 0.0, scope: Scope = "layer") -> Tensor:
    """Return which weights stay.

    Args:
        sensitivity: Sensitivity of the weights, shape ``(classes, features)``, finite.
        lowest: Share to remove from the bottom (rho_w_min), in [0, 1).
        highest: Share to remove from the top (rho_w_max), in [0, 1).
        scope: ``"layer"`` ranks all weights together, as the paper does; ``"class"`` ranks each class's row by itself.

    Returns:
        True = keep, shape ``(classes, features)``, bool.

    Raises:
        ShapeError: If `sensitivity` is no matrix.
        NonFiniteError: If it holds NaN or infinite values.
        RatioError: If the shares leave no entry of a ranking.
        OptionError: If `scope` is unknown.

    Warns:
        RatioWarning: If a share above 0 removes no entry.

    Example:
        >>> import torch
        >>> sensitivity = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> weight_mask(sensitivity, lowest=0.5).tolist()
        [[False, False], [True, True]]
        >>> weight_mask(sensitivity, lowest=0.5, scope="class").tolist()
        [[False, True], [False, True]]

    """
    if sensitivity.ndim != 2:
        raise ShapeError(
            f"`sensitivity` of weights must have shape (classes, features), got {tuple(sensitivity.shape)}."
        )
    if scope == "class":
        return keep_mask(sensitivity, lowest=lowest, highest=highest, name="w_")
    if scope == "layer":
        return keep_mask(sensitivity.reshape(1, -1), lowest=lowest, highest=highest, name="w_").view_as(sensitivity)
    raise OptionError(f'`scope` must be "layer" or "class", got {scope!r}.')


def neuron_mask(sensitivity: Tensor, *, lowest: float = 0.0, highest: float = 0.0) -> Tensor:
    """Return which neurons stay.

    Args:
        sensitivity: Sensitivity of the neurons, shape ``(features,)``, finite.
        lowest: Share to remove from the bottom (rho_o_min), in [0, 1).
        highest: Share to remove from the top (rho_o_max), in [0, 1).

    Returns:
        True = keep, shape ``(features,)``, bool.

    Raises:
        ShapeError: If `sensitivity` has not exactly one axis.
        NonFiniteError: If it holds NaN or infinite values.
        RatioError: If the shares leave no neuron.

    Warns:
        RatioWarning: If a share above 0 removes no entry.

    Example:
        >>> import torch
        >>> neuron_mask(torch.tensor([0.1, 0.4, 0.2, 0.3]), lowest=0.5).tolist()
        [False, True, False, True]

    """
    if sensitivity.ndim != 1:
        raise ShapeError(f"`sensitivity` of neurons must have shape (features,), got {tuple(sensitivity.shape)}.")
    return keep_mask(sensitivity[None], lowest=lowest, highest=highest, name="o_")[0]


def layer_masks(
    sensitivities: Mapping[str, Sensitivity],
    *,
    w_min: float = 0.0,
    w_max: float = 0.0,
    o_min: float = 0.0,
    o_max: float = 0.0,
    neuron: NeuronReading = "gradient",
    scope: Scope = "layer",
) -> dict[str, Tensor]:
    """Return which weights of each layer stay when these shares of its weights and of its neurons are removed.

    Neurons are the layer's inputs: features or channels. What is pruned of them is every weight that reads them.

    Args:
        sensitivities: Sensitivities by name of the layer, as `sensitivity` returns them.
        w_min: Share of the weights with the smallest sensitivity to remove from each layer, in [0, 1).
        w_max: Share of the weights with the largest.
        o_min: Share of the neurons with the smallest sensitivity to remove from each layer, in [0, 1).
        o_max: Share of the neurons with the largest.
        neuron: Reading of the neuron sensitivity, ``"gradient"`` or ``"aggregate"``.
        scope: ``"layer"`` ranks all weights of a layer together; ``"class"`` those of each output by themselves, be it
            a class, a feature or a channel.

    Returns:
        True = keep, by name, each of the shape of the layer's weight, bool.

    Raises:
        RatioError: If the shares leave no weight or no neuron.
        OptionError: If a share, `neuron` or `scope` is out of range.
        InputTypeError: If `sensitivities` is no mapping.
        NonFiniteError: If a sensitivity is NaN or infinite.

    Warns:
        RatioWarning: If a share above 0 removes nothing from a layer.

    Example:
        >>> import torch
        >>> mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> fc = Sensitivity(weight=mean, neuron_gradient=mean[0], neuron_aggregate=mean.mean(0), count=1)
        >>> layer_masks({"fc": fc}, w_min=0.25, o_max=0.5)["fc"].tolist()
        [[False, False], [True, False]]

    """
    if not isinstance(sensitivities, Mapping):
        raise InputTypeError(
            f"`sensitivities` must be a mapping by name of the layer, got {type(sensitivities).__name__}."
        )
    masks = {}
    for name, layer in sensitivities.items():
        shape = layer.weight.shape
        weights = weight_mask(layer.weight.flatten(1), lowest=w_min, highest=w_max, scope=scope).view(shape)
        neurons = neuron_mask(layer.neuron(neuron), lowest=o_min, highest=o_max)
        by_group = neurons.view(-1, 1, shape[1], *(1 for _ in shape[2:]))
        masks[name] = (weights.unflatten(0, (len(by_group), -1)) & by_group).flatten(0, 1)
    return masks


def warn_of_lost_order(lost: Tensor, keep: Tensor) -> None:
    """Warn if a cut falls among sensitivities that underflowed, so that index order chose between them.

    Args:
        lost: Entries whose sensitivity is zero or nearly, though it is not on paper, shape ``(rows, entries)``, one
            ranking a row.
        keep: The mask of these rankings, as `keep_mask` returns it.

    Warns:
        RatioWarning: If of the lost entries of a row some are kept and some are not.

    Example:
        All of what was lost is removed here:

        >>> import torch
        >>> warn_of_lost_order(torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]]))

    """
    is_cut = (lost & keep).any(1) & (lost & ~keep).any(1)
    if bool(is_cut.any()):
        warnings.warn(
            f"A ratio cuts among {int(lost[is_cut].sum())} of {lost[is_cut].numel()} sensitivities that underflow, "
            f"as the probabilities behind them vanish in every sample: index order or rounding chooses between them. "
            f"Raise the temperature, take precision='float64', or give ratios that remove all of them or none.",
            RatioWarning,
            stacklevel=2,
        )


def pruned_weight(weight: Tensor, masks: Masks) -> Tensor:
    """Return the weight with the pruned entries and the columns of the pruned neurons set to zero.

    Args:
        weight: Weight of the head, shape ``(classes, features)``.
        masks: What stays, for a head of that size.

    Returns:
        A new tensor, shape ``(classes, features)``, dtype and device of `weight`. The bias is no part of it: it stays.

    Raises:
        ShapeError: If the masks are those of another head.
        InputTypeError: If the masks are not boolean.

    Example:
        >>> import torch
        >>> masks = Masks(torch.tensor([[True, False, True]]), torch.tensor([True, True, False]))
        >>> pruned_weight(torch.tensor([[1.0, 2.0, 3.0]]), masks).tolist()
        [[1.0, 0.0, 0.0]]

    """
    if masks.weight.dtype != torch.bool or masks.neuron.dtype != torch.bool:
        raise InputTypeError(f"Masks must be boolean, got {masks.weight.dtype} and {masks.neuron.dtype}.")
    if masks.weight.shape != weight.shape or masks.neuron.shape != weight.shape[1:]:
        raise ShapeError(
            f"Masks must have shapes {tuple(weight.shape)} and {tuple(weight.shape[1:])} to fit `weight`, got "
            f"{tuple(masks.weight.shape)} and {tuple(masks.neuron.shape)}.",
        )
    return weight.masked_fill(~masks.kept, 0.0)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Mark the first `count` entries of each row's stable ascending order, 0 < count < entries."""
    cut = values.kthvalue(count, dim=1, keepdim=True).values
    tolerance = _EQUAL_WITHIN * cut.abs()
    below = values < cut - tolerance
    equal = ~below & (values <= cut + tolerance)
    missing = count - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing))

"""Whether a mask's cut falls among sensitivities that float64 could not hold, so that their order is not known.

A probability is never zero, but below 1e-308 float64 says so; a low temperature or very large logits get there. A
weight whose feature is not dead and whose sensitivity is that small has lost its place among the others of its kind. A
cut that takes all of them, or none, is exact all the same. One between them would go by index, and is refused. Ties on
paper, as those of dead features and of copies, are none of this: they keep index order.

So does a class that was lost as a whole, at a temperature of 0.2 or more: it was switched off, as by a bias of -1e4,
and which of its weights goes first does not matter. Below 0.2 the temperature alone makes classes vanish whose weights
do differ: a cut among them is refused.
"""

import torch
from torch import Tensor

from opnp.core.masks import Scope
from opnp.core.sensitivity import Sensitivity
from opnp.errors import RatioError

__all__ = ["require_known_neurons", "require_known_weights"]

_LEAST = 2.0**-980
"""Means of products below it may have lost digits: 1e-295."""
_ORDINARY = 0.2
"""Temperature from which on a class that was lost as a whole is one that was switched off."""


def require_known_weights(
    sensitivity: Sensitivity, *, lowest: float, highest: float, scope: Scope, temperature: float
) -> None:
    """Raise `RatioError` if these shares of the weights cut among sensitivities that were lost.

    Args:
        sensitivity: Sensitivities of a head.
        lowest: Share of the weights to remove from the bottom (rho_w_min), in [0, 1).
        highest: Share to remove from the top (rho_w_max), in [0, 1).
        scope: What is ranked together: the weights of the ``"layer"``, or those of each ``"class"``.
        temperature: Temperature that the sensitivities were taken at. From 0.2 on, a class that was lost as a whole
            keeps index order.

    Raises:
        RatioError: If the order at the cut is not known.

    Example:
        Of one sample the second probability was lost:

        >>> weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
        >>> lost = Sensitivity(weight, neuron_gradient=weight[0], neuron_aggregate=weight.mean(0), count=1)
        >>> require_known_weights(lost, lowest=0.5, highest=0.0, scope="layer", temperature=0.01)
        >>> require_known_weights(lost, lowest=0.25, highest=0.0, scope="layer", temperature=0.01)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        opnp.errors.RatioError: `w_min` = 0.25 cuts among 2 of 4 sensitivities that are too small ...

    """
    values, means = sensitivity.weight, sensitivity.neuron_aggregate * len(sensitivity.weight)
    level = torch.where(means > 0, _LEAST * means.clamp_min(1.0), 0.0)
    if (lowest or highest) and bool((values < level).any()):
        is_lost = values < level
        if temperature >= _ORDINARY:
            is_lost &= ~_is_lost_class(sensitivity)
        levels = torch.where(is_lost, level, 0.0)
        if scope == "layer":
            values, levels = values.reshape(1, -1), levels.reshape(1, -1)
        _require_order(values, levels, (lowest, highest), name="w_", temperature=temperature)


def require_known_neurons(
    sensitivity: Sensitivity, weight: Tensor, *, lowest: float, highest: float, temperature: float
) -> None:
    """Raise `RatioError` if these shares of the neurons, in the reading `gradient`, cut among lost sensitivities.

    A gradient sum_i p_i W_ij is lost if every class that the neuron has a weight of was; one that is zero because its
    terms cancel is not. From a temperature of 0.2 on such classes were switched off, and their neurons are ties.

    Args:
        sensitivity: Sensitivities of a head.
        weight: Weight of the head, shape ``(classes, features)``.
        lowest: Share of the neurons to remove from the bottom (rho_o_min), in [0, 1).
        highest: Share to remove from the top (rho_o_max), in [0, 1).
        temperature: Temperature that the sensitivities were taken at.

    Raises:
        RatioError: If the order at the cut is not known.

    Example:
        Two neurons speak for the second class alone, whose probability was lost:

        >>> of_weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        >>> of_neurons = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        >>> lost = Sensitivity(of_weights, neuron_gradient=of_neurons, neuron_aggregate=of_weights.mean(0), count=1)
        >>> head = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> require_known_neurons(lost, head, lowest=0.3, highest=0.0, temperature=0.01)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        opnp.errors.RatioError: `o_min` = 0.3 cuts among 2 of 3 sensitivities that are too small ...

    """
    values, largest = sensitivity.neuron_gradient, weight.abs().amax(0).double()
    level = torch.where(largest > 0, _LEAST * largest.clamp_min(1.0), 0.0)
    if temperature < _ORDINARY and (lowest or highest) and bool((values < level).any()):
        is_reached = ((weight != 0) & ~_is_lost_class(sensitivity)).any(0)
        levels = torch.where((values < level) & ~is_reached, level, 0.0)
        _require_order(values[None], levels[None], (lowest, highest), name="o_", temperature=temperature)


def _is_lost_class(sensitivity: Sensitivity) -> Tensor:
    """Return whether the whole row of a class was lost, shape ``(classes, 1)``: its share of every feature's mean."""
    means = sensitivity.neuron_aggregate * len(sensitivity.weight)
    shares = sensitivity.weight / torch.where(means > 0, means, torch.inf)
    return shares.amax(1, keepdim=True) < _LEAST


def _require_order(
    values: Tensor, levels: Tensor, shares: tuple[float, float], *, name: str, temperature: float
) -> None:
    """Raise if a cut falls into the unordered bottom of a row: what lies below the level of any entry that was lost."""
    entries, (lowest, highest) = values.shape[1], shares
    unordered = (values < levels.amax(1, keepdim=True)).sum(1)
    for ratio, share, below in (
        ("min", lowest, round(lowest * entries)),
        ("max", highest, entries - round(highest * entries)),
    ):
        is_cut = (0 < below < entries) & (below < unordered)
        if bool(is_cut.any()):
            count = int(unordered[is_cut].max())
            bound = f"at least {count / entries:.9g}" if ratio == "min" else f"at most {1 - count / entries:.9g}"
            remedy = "give a ratio of 0" if count == entries else f"give a ratio of 0 or of {bound}"
            raise RatioError(
                f"`{name}{ratio}` = {share:g} cuts among {count} of {entries} sensitivities that are too small for "
                f"float64 (1e-295), so that their order is not known. The probabilities behind them vanish in every "
                f"sample, at `temperature` = {temperature:g}. Raise the temperature, or {remedy}."
            )

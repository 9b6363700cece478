"""Masks for the weights of any layers, from their sensitivities: each layer is ranked by itself, as the paper does."""

from collections.abc import Mapping

from torch import Tensor

from opnp.core.masks import Scope, neuron_mask, weight_mask
from opnp.core.sensitivity import NeuronReading, Sensitivity
from opnp.errors import InputTypeError

__all__ = ["layer_masks"]


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

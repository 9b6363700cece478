r"""Sensitivity of the energy to the weights and inputs of any layer, as an additive value, and the masks made of it.

With h the layer's input, d = dE / d(output) the gradient that arrives at its output and p its positions (tokens,
pixels), the gradient for one sample is a sum over positions; the absolute value comes after it:

    linear         dE / dW_ij   = sum_p d_i(p) h_j(p)
    convolution    dE / dW_ijuv = sum_p d_i(p) h_j(stride * p + dilation * (u, v) - padding)
    weight         M = (1/m) sum_k |dE(x_k) / dW|
    gradient       (1/m) sum_k |sum_p dE(x_k) / dh_j(p)|, through this layer alone
    aggregate      means of M over all weights that read input j

For the last layer, where d = -softmax, that is the closed form of `opnp.core.sensitivity`. For any other
`opnp.model.layers` takes the gradients, sample by sample.

A neuron is an input feature or channel. It is pruned at all positions at once, so that its sum over positions stands
inside the absolute value, as that of a weight does.

Source: Chen et al., NeurIPS 2023, section 3 (step 1 of the method), which defines the sensitivity for every layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from opnp.core.checks import require_finite_sums
from opnp.core.masks import Scope, neuron_mask, weight_mask
from opnp.core.sensitivity import NeuronReading, Sensitivity
from opnp.errors import EmptyDataError, InputTypeError, ShapeError

__all__ = ["LayerSensitivitySum", "layer_masks"]


@dataclass(frozen=True, eq=False, slots=True)
class LayerSensitivitySum:
    """Sums of absolute gradients over the samples seen so far, for one layer: a value that adds up.

    Parts of the data may be summed anywhere, in any order, and merged by ``+``; `mean` ends the sum.

    Attributes:
        weight: Sum of |dE / dW|, of the shape of the layer's weight, float64.
        neuron: Sum of |dE / dh_j|, summed over positions before the absolute value, shape ``(inputs,)``, float64.
        count: Number of samples summed.

    Example:
        >>> part = LayerSensitivitySum(weight=torch.tensor([[2.0, 0.0]]), neuron=torch.tensor([1.0, 1.0]), count=1)
        >>> (part + part).mean().weight.tolist()
        [[2.0, 0.0]]

    """

    weight: Tensor
    neuron: Tensor
    count: int

    @classmethod
    def zeros(cls, shape: Sequence[int], *, groups: int = 1, device: torch.device | str | None = None) -> Self:
        """Return the empty sum, the neutral element of ``+``, for a layer whose weight has this shape.

        Example:
            >>> LayerSensitivitySum.zeros((8, 2, 3, 3), groups=4).neuron.shape
            torch.Size([8])

        """
        return cls(
            weight=torch.zeros(*shape, dtype=torch.float64, device=device),
            neuron=torch.zeros(shape[1] * groups, dtype=torch.float64, device=device),
            count=0,
        )

    def __add__(self, other: object) -> "LayerSensitivitySum":
        """Return the sum over both parts of the data.

        Raises:
            ShapeError: If the parts come from layers of different size.

        """
        if not isinstance(other, LayerSensitivitySum):
            return NotImplemented
        if self.weight.shape != other.weight.shape or self.neuron.shape != other.neuron.shape:
            raise ShapeError(
                f"Sums of layers of different size cannot be merged: weights of shape {tuple(self.weight.shape)} with "
                f"{len(self.neuron)} inputs on the left, {tuple(other.weight.shape)} with {len(other.neuron)} on the "
                f"right.",
            )
        return LayerSensitivitySum(
            weight=self.weight + other.weight,
            neuron=self.neuron + other.neuron,
            count=self.count + other.count,
        )

    def mean(self) -> Sensitivity:
        """Return the sensitivities: the sums divided by the count.

        Raises:
            EmptyDataError: If no sample was summed.
            NonFiniteError: If inputs or gradients were not finite, or products of them too large.

        """
        if self.count == 0:
            raise EmptyDataError("No sample was summed: the sensitivity of no data is undefined.")
        require_finite_sums(self.weight, self.neuron)
        weight = self.weight / self.count
        groups = len(self.neuron) // weight.shape[1]
        by_input = weight.unflatten(0, (groups, -1)).flatten(3) if weight.ndim > 2 else weight[None, ..., None]
        return Sensitivity(
            weight=weight,
            neuron_gradient=self.neuron / self.count,
            neuron_aggregate=by_input.mean((1, 3)).flatten(),
            count=self.count,
        )


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

r"""What one block of rows adds to the sums of absolute gradients, exact also where float32 is not.

Products are taken in the dtype that is asked for. The columns of the result that float32 does not hold are taken again
in float64, column by column, so that ordinary data cost nothing more:

- sums that a probability or a product below 2^-126 may have left something out of, as at a low temperature, or that
  overflow;
- sums of all classes that are nearly equal, as at a high temperature: their order is in the last digits;
- gradients for a neuron, sum_i p_i W_ij, whose terms cancel. What is left of them in float64 below 2^-44 of the terms'
  size is rounding, and counts as 0.
"""

import torch
from torch import Tensor

__all__ = ["block_sums"]

_LOST = 2.0**-102
"""A term of float32 is off by up to 2^-126 of the factor beside it: this much is right to 2^-24."""
_NEARLY_EQUAL = 2.0**-5
_CANCELLED = 2.0**-8
_ROUNDING = 2.0**-44


def block_sums(
    features: Tensor, logits: Tensor, weight: Tensor, *, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return P^T |H| and the column sums of |P W| for rows of features and logits, P = softmax(logits / temperature).

    Args:
        features: H, shape ``(rows, features)``.
        logits: Shape ``(rows, classes)``.
        weight: W, shape ``(classes, features)``.
        temperature: Temperature T, above 0.
        dtype: What products are taken in where that is exact: float32 or float64.

    Returns:
        Shapes ``(classes, features)`` and ``(features,)``, in `dtype`, or in float64 where that was needed.

    Example:
        In float32 the second probability would be 0, and which feature matters more to its class could not be told:

        >>> of_weights, _ = block_sums(
        ...     torch.tensor([[1.0, 2.0]]),
        ...     torch.tensor([[2.0, 0.0]]),
        ...     torch.ones(2, 2),
        ...     temperature=0.01,
        ...     dtype=torch.float32,
        ... )
        >>> [f"{value:.3g}" for value in of_weights[1].tolist()]
        ['1.38e-87', '2.77e-87']

    """
    probabilities = _probabilities(logits.to(dtype), temperature)
    absolute = features.to(dtype).abs()
    of_weights = probabilities.T @ absolute
    of_neurons = (probabilities @ weight.to(dtype)).abs_().sum(0)
    columns = _inexact_weights(of_weights, absolute) if dtype == torch.float32 else ()
    neurons = _inexact_neurons(of_neurons, probabilities, weight.to(dtype))
    if len(columns) or len(neurons):
        probabilities = probabilities if dtype == torch.float64 else _probabilities(logits.double(), temperature)
    if len(columns):
        of_weights = of_weights.double()
        of_weights[:, columns] = probabilities.T @ features[:, columns].double().abs()
    if len(neurons):
        of_neurons = of_neurons.double()
        of_neurons[neurons] = _without_rounding(probabilities, weight[:, neurons].double())
    return of_weights, of_neurons


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    if temperature != 1.0:
        logits = (logits - logits.amax(1, keepdim=True)) / temperature  # no overflow at small T
    return torch.softmax(logits, dim=1)


def _inexact_weights(of_weights: Tensor, absolute: Tensor) -> Tensor:
    """Return the columns whose sums float32 does not hold; a feature that is zero in every row has none to hold."""
    least, most, largest = of_weights.amin(0), of_weights.amax(0), absolute.amax(0)
    is_held = (least >= _LOST * len(absolute) * (largest + 1)) & most.isfinite()
    is_told_apart = least <= (1 - _NEARLY_EQUAL) * most
    return (~(is_held & is_told_apart) & (largest != 0)).nonzero().flatten()


def _inexact_neurons(of_neurons: Tensor, probabilities: Tensor, weight: Tensor) -> Tensor:
    """Return the columns whose terms cancel, or are too small or too large; a column of zeros is none of them."""
    sizes = weight.abs()
    largest, terms = sizes.amax(0), probabilities.sum(0) @ sizes
    least = torch.maximum(_CANCELLED * terms, _LOST * probabilities.numel() * (largest + 1))
    is_held = (of_neurons >= least) & of_neurons.isfinite()
    return (~is_held & (largest > 0)).nonzero().flatten()


def _without_rounding(probabilities: Tensor, weight: Tensor) -> Tensor:
    """Return the column sums of |P W|, where what cannot be told from rounding counts as 0."""
    gradients = (probabilities @ weight).abs_()
    return gradients.masked_fill_(gradients < _ROUNDING * (probabilities @ weight.abs()), 0.0).sum(0)

"""Sensitivities the slow way: a forward and a backward pass for each sample, straight from the definition."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["loop_sensitivity"]


def loop_sensitivity(
    model: nn.Module, batches: Iterable[Tensor], names: Sequence[str], *, temperature: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the mean absolute gradient of the energy for each weight, and for each input of a layer.

    The gradient for an input, summed over positions, is that for a number added to it at every position.
    """
    layers = {name: layer for name, layer in model.named_modules() if name in names}
    weights = [layers[name].weight for name in names]
    of_weights: list[Tensor] = [torch.zeros_like(weight) for weight in weights]
    with _shifts(layers) as shifts:
        of_inputs = [torch.zeros_like(shifts[name]) for name in names]
        samples = [sample for batch in batches for sample in batch]
        for sample in samples:
            logits = model(sample[None])
            energy = -temperature * torch.logsumexp(logits / temperature, dim=1).sum()
            gradients = torch.autograd.grad(energy, [*weights, *(shifts[name] for name in names)], allow_unused=True)
            for total, gradient in zip([*of_weights, *of_inputs], gradients, strict=True):
                total.add_(0 if gradient is None else gradient.abs())
    return (
        {name: total / len(samples) for name, total in zip(names, of_weights, strict=True)},
        {name: total / len(samples) for name, total in zip(names, of_inputs, strict=True)},
    )


@contextmanager
def _shifts(layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Add a vector of zeros to what each layer gets, and yield the vectors."""
    shifts, handles = {}, []
    for name, layer in layers.items():
        width = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        assert isinstance(width, int)
        shift = shifts[name] = torch.zeros(width, dtype=torch.float64, requires_grad=True)
        shaped = shift.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else shift

        def hook(_module: nn.Module, args: tuple[Tensor, ...], shaped: Tensor = shaped) -> tuple[Tensor]:
            return (args[0] + shaped,)

        handles.append(layer.register_forward_pre_hook(hook))
    try:
        yield shifts
    finally:
        for handle in handles:
            handle.remove()

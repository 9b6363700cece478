"""A head behind any encoder: one classifier that detectors can read, and that leaves the encoder as it was."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from opnp.errors import InputTypeError
from opnp.model import borrowed

__all__ = ["EncodedClassifier", "encoded", "owner_of"]

Encoder = Callable[[Tensor], Tensor]


class EncodedClassifier(nn.Module):
    """A linear head on what an encoder gives; the encoder's module is part of it, so that its mode can be held.

    Args:
        encoder: Function from inputs to features; trailing axes are flattened.
        weight: The head's weight, shape ``(classes, features)``; used as it is.
        bias: The head's bias, shape ``(classes,)``, or None.
        owner: The module that the encoder runs; None for the one found by `owner_of`.

    Example:
        >>> import torch
        >>> model = EncodedClassifier(lambda inputs: 2 * inputs, torch.eye(2), None)
        >>> model(torch.tensor([[1.0, 3.0]])).tolist()
        [[2.0, 6.0]]

    """

    def __init__(
        self, encoder: Encoder, weight: Tensor, bias: Tensor | None, *, owner: nn.Module | None = None
    ) -> None:
        """Keep the encoder, and make the head."""
        super().__init__()
        self.owner = owner_of(encoder) if owner is None else owner
        self.encoder = encoder
        classes, width = weight.shape
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, width, classes, bias=bias is not None, device="meta")
        self.head.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``."""
        logits: Tensor = self.head(_flat(self.encoder(inputs)).to(self.head.weight))
        return logits


def encoded(encoder: Encoder, inputs: Tensor, *, owner: nn.Module | None = None) -> Tensor:
    """Return the features of a batch, shape ``(batch, features)``, taken in eval mode and without autograd.

    Args:
        encoder: Function from inputs to features; trailing axes are flattened.
        inputs: A batch; it is moved to where the encoder's module is.
        owner: The module that the encoder runs, which comes back as it was; None for the one found by `owner_of`.

    Raises:
        InputTypeError: If the encoder gives no tensor.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> encoded(nn.Dropout(0.5), torch.ones(1, 2, 1, 1)).tolist()
        [[1.0, 1.0]]

    """
    owner = owner_of(encoder) if owner is None else owner
    if owner is None:
        with torch.no_grad():
            return _flat(encoder(inputs))
    with borrowed(owner) as device:
        return _flat(encoder(inputs.to(device)))


def owner_of(encoder: object) -> nn.Module | None:
    """Return the module that an encoder is or is a method of; None for a function, whose module cannot be known.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> owner_of(layer) is layer and owner_of(layer.forward) is layer
        True
        >>> owner_of(lambda inputs: layer(inputs)) is None
        True

    """
    while isinstance(encoder, partial):
        encoder = encoder.func
    found = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    return found if isinstance(found, nn.Module) else None


def _flat(features: Tensor) -> Tensor:
    if not isinstance(features, Tensor):
        raise InputTypeError(
            f"The encoder must return a tensor of features, shape (batch, features), got {type(features).__name__}."
        )
    return features.flatten(1)

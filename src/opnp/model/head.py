"""The head: the layer that turns features into the model's logits, read as a linear layer whatever it is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model.head_messages import token_message
from opnp.model.layers import weight_of
from opnp.model.outputs import LogitsSelector, logits_of

__all__ = ["Head", "HeadLayer", "head_layers", "head_outcome", "linear_layers"]

HeadLayer = nn.Linear | nn.Conv2d
"""What a head can be: a linear layer, or a 1x1 convolution, which is one at each position."""


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """The classifier's last layer within its model.

    Attributes:
        name: Dotted name in the unwrapped model; empty if the model is nothing but its head.
        module: The layer itself: an `nn.Linear`, or a 1x1 `nn.Conv2d`.
        is_output: Whether the model's logits are this layer's output as it stands, or its mean over positions.
        is_averaged: Whether the layer is a convolution whose output is averaged over positions. Then the features are
            the mean of its input: the mean of what it makes is what it makes of the mean.
        logits: Where the logits are in the model's output, as `logits_of` takes it.

    Example:
        >>> head = Head(name="fc", module=nn.Conv2d(8, 3, 1), is_output=True)
        >>> head.weight.shape, head.bias.shape
        (torch.Size([3, 8]), torch.Size([3]))

    """

    name: str
    module: HeadLayer
    is_output: bool
    is_averaged: bool = False
    logits: LogitsSelector | None = None

    @property
    def label(self) -> str:
        """The name, in words for messages."""
        return f"`{self.name}`" if self.name else "the model itself"

    @property
    def weight(self) -> Tensor:
        """The weight as a matrix, shape ``(classes, features)``, without gradient, in the layer's memory."""
        return weight_of(self.module).detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape ``(classes,)``, without gradient, or None."""
        return None if self.module.bias is None else self.module.bias.detach()

    @property
    def linear(self) -> nn.Linear:
        """The head as an `nn.Linear`: the layer itself, or in the place of a convolution one in the same memory."""
        if isinstance(self.module, nn.Linear):
            return self.module
        weight, bias = self.weight, self.bias
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta").train(
            self.module.training
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]  # a Linear without bias holds None
        return layer

    def logits_from(self, output: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``, in the layer's own output."""
        return output.mean((2, 3)) if isinstance(self.module, nn.Conv2d) else output


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the model's `nn.Linear` layers by dotted name, in the order of their registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def head_layers(model: nn.Module) -> dict[str, HeadLayer]:
    """Return the layers that can be a head by dotted name: every `nn.Linear`, and the 1x1 convolutions among others.

    A convolution is linear in the features of one position if its kernel is 1x1, its stride 1, and it has one group
    and no padding.

    Example:
        >>> list(head_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(5, 5))))
        ['1', '3']

    """
    return {name: module for name, module in model.named_modules() if _can_be_head(module)}


def head_outcome(head: Head, received: list[Tensor], answer: object) -> tuple[Tensor, Tensor]:
    """Return the (features, logits) of one forward pass, from what the head received and what the model answered."""
    features = _one_vector_a_sample(received, head)
    logits = logits_of(answer, head.logits) if head.is_output else None
    if logits is None:
        logits = torch.nn.functional.linear(features, head.weight, head.bias)
    elif isinstance(head.module, nn.Conv2d):
        logits = logits.flatten(1)
    return features.detach(), logits.detach()


def _can_be_head(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear)
    is_by_position = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return is_by_position and module.padding in ((0, 0), "same", "valid")


def _one_vector_a_sample(received: list[Tensor], head: Head) -> Tensor:
    if len(received) != 1:
        raise HeadNotFoundError(
            f"The head {head.label} ran {len(received)} times in one forward pass: it must run once. Choose another "
            f"layer with `head=`, or compute the features yourself and use the `*_features` methods.",
        )
    features = received[0]
    if isinstance(head.module, nn.Conv2d) and features.ndim == 4:
        positions = features.shape[2] * features.shape[3]
        if positions > 1 and not head.is_averaged:
            raise ShapeError(
                f"The head {head.label} received features at {features.shape[2]} x {features.shape[3]} positions, and "
                f"it was found on inputs that gave it one: give inputs of one size, the larger ones first.",
            )
        return features.flatten(1) if positions == 1 else features.mean((2, 3))
    if features.ndim != 2:
        raise ShapeError(token_message(f"The head {head.label}", tuple(features.shape)))
    return features

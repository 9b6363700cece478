"""The head: the layer that turns features into the model's logits, read as a linear layer whatever it is."""

from dataclasses import dataclass

from torch import Tensor, nn

from opnp.errors import InputTypeError
from opnp.model.layers import tensor_of, weight_of
from opnp.model.outputs import LogitsSelector

__all__ = ["Head", "HeadLayer", "head_layers", "linear_layers", "require_module"]

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
        bias = tensor_of(self.module, "bias")
        return None if bias is None else bias.detach()

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
    require_module(model)
    return {name: module for name, module in model.named_modules() if _can_be_head(module)}


def require_module(model: object) -> None:
    """Raise `InputTypeError` if a model is no `nn.Module`."""
    if not isinstance(model, nn.Module):
        hint = " Give the module that it calls." if callable(model) and not isinstance(model, type) else ""
        raise InputTypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.{hint}")


def _can_be_head(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear)
    is_by_position = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return is_by_position and module.padding in ((0, 0), "same", "valid")

"""How a model is run on images to read its features: precision and memory format."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from opnp.errors import OptionError
from opnp.model import device_of, unwrapped

__all__ = ["Amp", "Forward", "target_device"]

Amp = Literal["none", "bf16"]
"""Precision of the forward pass: as the model is, or bfloat16 where autocast of torch takes it for safe."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Options of a forward pass. Each changes the last bits of features, ``bf16`` more than those.

    Attributes:
        amp: Precision.
        is_channels_last: Whether images and the weights of convolutions lie in memory channels last.

    Raises:
        OptionError: If `amp` is none of its values.

    Example:
        >>> Forward().facts, Forward(amp="bf16").facts
        ({}, {'amp': 'bf16'})

    """

    amp: Amp = "none"
    is_channels_last: bool = False

    def __post_init__(self) -> None:
        """Check the precision."""
        if self.amp not in get_args(Amp):
            raise OptionError(f"`amp` must be {' or '.join(get_args(Amp))}, got {self.amp!r}.")

    @property
    def facts(self) -> dict[str, object]:
        """What differs from the defaults, as JSON values, so that features of one kind are not taken for another's."""
        chosen = {
            "amp": self.amp if self.amp != "none" else None,
            "channels_last": self.is_channels_last,
        }
        return {name: value for name, value in chosen.items() if value}

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context that the model runs in on a device."""
        if self.amp == "none":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def laid_out(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the model's weights lie as asked; on leaving they are those from before."""
        return _channels_last(unwrapped(model)) if self.is_channels_last else nullcontext()

    def moved(self, batches: Iterable[Any], device: torch.device) -> Iterator[object]:
        """Yield the batches with inputs on a device, laid out as asked; pinned ones are copied without waiting."""
        for batch in batches:
            is_labelled = isinstance(batch, tuple | list)
            yield (self._moved(batch[0], device), *batch[1:]) if is_labelled else self._moved(batch, device)

    def _moved(self, inputs: object, device: torch.device) -> object:
        if isinstance(inputs, Mapping):
            return {name: self._moved(value, device) for name, value in inputs.items()}
        if not isinstance(inputs, Tensor):
            return inputs
        is_turned = self.is_channels_last and inputs.ndim == 4
        layout = torch.channels_last if is_turned else torch.preserve_format
        return inputs.to(device, non_blocking=True, memory_format=layout)


def target_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return the device that a model will run on: the one given, else where it is."""
    if device is not None:
        return torch.device(device)
    return device_of(unwrapped(model)) or torch.device("cpu")


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Lay the weights of convolutions out channels last, and put the very same memory back afterwards."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    held = [(tensor, tensor.data) for tensor in tensors if tensor.ndim == 4]
    try:
        for tensor, content in held:
            tensor.data = content.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for tensor, content in held:
            tensor.data = content

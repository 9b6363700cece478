"""Buffers of modules on loan: kept when the loan begins, and given back bit for bit when it ends."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from opnp.errors import OpnpWarning

__all__ = ["KeptBuffers"]

_Place = tuple[nn.Module, str, Tensor]
"""A module, the name that it has for a tensor, and the tensor."""


@dataclass(frozen=True, eq=False, slots=True)
class KeptBuffers:
    """The buffers in the state dicts of some modules, with one copy of their bytes on each device.

    Attributes:
        modules: The modules that are still on loan.
        buffers: Their buffers by device.
        copies: The bytes of these buffers, one after the other, by device.
        parameters: Their parameters, each with its version.

    """

    modules: set[nn.Module]
    buffers: dict[torch.device, list[_Place]]
    copies: dict[torch.device, Tensor]
    parameters: list[tuple[_Place, int]]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Self:
        """Return what is to be kept of these modules themselves, without the modules inside of them."""
        held = list(modules)
        buffers: dict[torch.device, list[_Place]] = {}
        parameters: list[tuple[_Place, int]] = []
        for module in held:
            for name, tensor in module._buffers.items():  # noqa: SLF001  # `named_buffers` names a shared tensor but once
                is_cache = name in module._non_persistent_buffers_set  # noqa: SLF001  # torch has no other name for it
                if tensor is not None and not is_cache and _has_bytes(tensor):
                    buffers.setdefault(tensor.device, []).append((module, name, tensor))
            for name, parameter in module._parameters.items():  # noqa: SLF001  # as above
                if parameter is not None and not parameter.is_inference():
                    parameters.append(((module, name, parameter), parameter._version))  # noqa: SLF001  # as above
        return cls(set(held), buffers, {device: _bytes(places) for device, places in buffers.items()}, parameters)

    def give_back(self) -> None:
        """Give the buffers that were written to or replaced their values back; warn if parameters were written to.

        Then the buffers stay as they are, since they may say that the parameters are set up.
        """
        written = [name for (_, name, parameter), version in self.parameters if parameter._version != version]  # noqa: SLF001  # torch has no other name for it
        if written:
            warnings.warn(
                f"The model wrote to {len(written)} of its parameters in a forward pass in eval mode ({written[0]}), "
                f"so that it is not left as it was. If it sets itself up by its first batch, run it once before.",
                OpnpWarning,
                stacklevel=2,
            )
            return
        for device, places in self.buffers.items():
            for module, name, tensor in places:
                if module._buffers.get(name) is not tensor:  # noqa: SLF001  # as above
                    module._buffers[name] = tensor  # noqa: SLF001  # as above
            copy = self.copies[device]
            if torch.equal(_bytes(places), copy):
                continue
            sizes = [tensor.numel() * tensor.element_size() for _, _, tensor in places]
            for (_, _, tensor), before in zip(places, copy.split(sizes), strict=True):
                if not torch.equal(_bytes_of(tensor), before):
                    with torch.inference_mode(tensor.is_inference()):
                        tensor.copy_(before.clone().view(tensor.dtype).view(tensor.shape))


def _has_bytes(tensor: Tensor) -> bool:
    """Return whether a tensor is a plain one, whose values lie in memory."""
    is_plain = type(tensor) in {Tensor, nn.Parameter} and tensor.layout is torch.strided and not tensor.is_quantized
    return is_plain and tensor.device.type != "meta"


def _bytes(places: list[_Place]) -> Tensor:
    """Return the bytes of tensors on one device, one after the other, as a tensor of their own."""
    return torch.cat([_bytes_of(tensor) for _, _, tensor in places])


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)

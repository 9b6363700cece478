"""The user's model, lent and given back as it was: wrappers looked through, modes, buffers, hooks, device restored."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from opnp.errors import InsufficientMemoryError, OpnpWarning
from opnp.model.forward import is_out_of_memory

__all__ = ["borrowed", "device_of", "in_this_thread", "set_eval_mode", "unwrapped"]

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_CHOOSING = threading.Lock()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers.

    Hooks on a compiled module never fire, and the replicas of a `DataParallel` have none; the module inside is the
    same model, with the same weights.

    Example:
        >>> from torch import nn
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True

    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer that has values, None if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            return tensor.device
    return None


@contextmanager
def borrowed(model: nn.Module, *, device: torch.device | str | None = None) -> Iterator[torch.device | None]:
    """Hold the model in eval mode, without autograd, on `device`; then give each module back as it was.

    A model is lent to one thread at a time: others that want to borrow it wait until it is given back.

    The mode is set module by module and not through `eval()`, so that code a model runs there has no effect. Buffers
    of the state dict that the model writes to meanwhile, such as a counter of batches, get their values back; a copy
    of them is held until then. Buffers outside of the state dict are caches of the model, and stay as it left them.

    Args:
        model: An unwrapped model.
        device: Where to run; None for where the model is. A model that is moved is moved back.

    Yields:
        The device that inputs belong on.

    Raises:
        InsufficientMemoryError: If there is not enough memory for the model on `device`.

    Warns:
        OpnpWarning: If the model wrote to its parameters, of which no copy is held.

    """
    with _CHOOSING:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock, torch.no_grad(), _eager(model):
        home = device_of(model)
        target = home if device is None else torch.device(device)
        is_moved = home is not None and target is not None and torch.empty(0, device=target).device != home
        try:
            if is_moved:
                _move(model, target)
            with _in_eval_mode(model):
                yield target
        finally:
            if is_moved:
                model.to(home)


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads, which may run the model meanwhile."""
    owner = threading.get_ident()

    def guarded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # whatever torch gives a hook
        return hook(*args, **kwargs) if threading.get_ident() == owner else None

    return guarded


def set_eval_mode(modules: Iterable[nn.Module]) -> None:
    """Set each module to eval mode, by itself: a model may change its mode in its forward, or have a `train` that does.

    What mode each had before is known to the loan that these modules are under.
    """
    for module in modules:
        if module.training:
            module.training = False


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold each module in eval mode, then give back the modes and the buffers."""
    modes = {module: module.training for module in model.modules()}
    kept = _KeptBuffers.of(modes)
    try:
        set_eval_mode(modes)
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
        kept.give_back()


def _move(model: nn.Module, target: torch.device | None) -> None:
    try:
        model.to(target)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise InsufficientMemoryError(
                f"There is not enough memory on {target} for the model itself ({str(error)[:160]}). Run it where there "
                f"is more."
            ) from error
        raise


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """Return a context in which parts of the model that are compiled run as written, so that hooks fire."""
    is_compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


_Place = tuple[nn.Module, str, Tensor]
"""A module, the name that it has for a tensor, and the tensor."""


@dataclass(frozen=True, eq=False, slots=True)
class _KeptBuffers:
    """The buffers in the state dict of a model, with one copy of their bytes on each device.

    Attributes:
        buffers: The buffers by device.
        copies: The bytes of these buffers, one after the other, by device.
        parameters: The parameters, each with its version.

    """

    buffers: dict[torch.device, list[_Place]]
    copies: dict[torch.device, Tensor]
    parameters: list[tuple[str, Tensor, int]]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Self:
        """Return what is to be kept of these modules themselves, without the modules inside of them."""
        buffers: dict[torch.device, list[_Place]] = {}
        parameters: list[tuple[str, Tensor, int]] = []
        for module in modules:
            for name, tensor in module._buffers.items():  # noqa: SLF001  # `named_buffers` names a shared tensor but once
                is_cache = name in module._non_persistent_buffers_set  # noqa: SLF001  # torch has no other name for it
                if tensor is not None and not is_cache and _has_bytes(tensor):
                    buffers.setdefault(tensor.device, []).append((module, name, tensor))
            for name, parameter in module._parameters.items():  # noqa: SLF001  # as above
                if parameter is not None and not parameter.is_inference():
                    parameters.append((name, parameter, parameter._version))  # noqa: SLF001  # as above
        return cls(buffers, {device: _bytes(places) for device, places in buffers.items()}, parameters)

    def give_back(self) -> None:
        """Give the buffers that were written to or replaced their values back; warn if parameters were written to.

        Then the buffers stay as they are, since they may say that the parameters are set up.
        """
        written = [name for name, parameter, version in self.parameters if parameter._version != version]  # noqa: SLF001  # torch has no other name for it
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
            if torch.equal(_bytes(places), self.copies[device]):
                continue
            sizes = [tensor.numel() * tensor.element_size() for _, _, tensor in places]
            for (_, _, tensor), before in zip(places, self.copies[device].split(sizes), strict=True):
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

"""The user's model, lent and given back as it was: wrappers looked through, modes, buffers, hooks, device restored.

Masks on its layers too are put on and taken off again, or for good on a copy.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from opnp.errors import InputTypeError, InsufficientMemoryError, LayerError, LayerNotFoundError, OpnpWarning, ShapeError
from opnp.model.forward import is_out_of_memory

__all__ = [
    "LAYER_KINDS",
    "borrowed",
    "device_of",
    "in_this_thread",
    "listed_layers",
    "named_layer",
    "pruned",
    "pruned_copy",
    "set_eval_mode",
    "unwrapped",
]

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

    A module is lent to one thread at a time: others that want to borrow it, in this model or in another, wait until it
    is given back.

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
    with _alone(model), torch.no_grad(), _eager(model):
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


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Hold the locks of all modules: models that share some of them are lent one after the other."""
    with _CHOOSING:
        locks = [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(model.modules(), key=id)]
    with ExitStack() as held:
        for lock in locks:  # always in this order, so that two threads never wait for one another
            held.enter_context(lock)
        yield


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


# ----------------------------------------------------------------------------------------------- masks on its layers
LAYER_KINDS = (nn.Linear, nn.Conv2d)
_SHOWN = 20


@contextmanager
def pruned(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Hold masks on the layers of a model, by `torch.nn.utils.prune`; on leaving, it is bit for bit as it was.

    Meanwhile each layer has the parameter `weight_orig`, the buffer `weight_mask` and a `weight` that is their product,
    so that it can be trained with its mask on: what an optimizer did to `weight_orig` stays afterwards, as `weight`.

    Args:
        model: Any model; wrappers such as `DataParallel` are looked through.
        masks: By dotted name of an `nn.Linear` or `nn.Conv2d`: True = keep, of the shape of its weight, bool; for a 1x1
            convolution ``(outputs, inputs)`` will do, as a detector has it for such a head.

    Yields:
        The model.

    Raises:
        LayerNotFoundError: If there is no such layer.
        LayerError: If it is of another kind, or its weight is pruned or parametrized already.
        ShapeError: If a mask is not of the shape of the weight.
        InputTypeError: If `masks` is no mapping, or a mask not boolean.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> with pruned(model, {"0": torch.tensor([[True, False]])}):
        ...     model(torch.ones(1, 2)).tolist()
        [[3.0]]
        >>> model(torch.ones(1, 2)).tolist()
        [[6.0]]

    """
    with ExitStack() as stack:
        for module, mask in _checked(unwrapped(model), masks):
            stack.enter_context(_masked(module, mask))
        yield model


def pruned_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a deep copy of a model with the pruned weights set to zero for good; the model is not touched.

    The copy has the layers and the names of the model: its state loads wherever the model's does. A weight that layers
    share is split in two where the mask is on one of them.

    Args:
        model: Any model; the copy is that of the module inside wrappers such as `DataParallel`.
        masks: By dotted name, as `pruned` takes them.

    Returns:
        The copy.

    Raises:
        LayerNotFoundError: If there is no such layer.
        LayerError: If it is of another kind, or its weight is pruned or parametrized already.
        ShapeError: If a mask is not of the shape of the weight.
        InputTypeError: If `masks` is no mapping, or a mask not boolean.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> pruned_copy(model, {"0": torch.tensor([[True, False]])})[0].weight.tolist()
        [[3.0, 0.0]]

    """
    _checked(unwrapped(model), masks)  # before the copy is made
    result = copy.deepcopy(unwrapped(model))
    for module, mask in _checked(result, masks):
        weight = module.weight
        values = weight.detach().masked_fill(~mask.to(weight.device), 0.0)
        module.weight = nn.Parameter(values, requires_grad=weight.requires_grad)
    return result


def named_layer(
    model: nn.Module, layer: str | nn.Module, *, argument: str = "layers"
) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return name and module of a layer that is given by either.

    Args:
        model: An unwrapped model.
        layer: The layer, or its dotted name.
        argument: What it was given in, for messages.

    Returns:
        The dotted name, and the layer looked at through wrappers.

    Raises:
        InputTypeError: If `layer` is neither.
        LayerNotFoundError: If the model has no such layer.
        LayerError: If it is no `nn.Linear` or `nn.Conv2d`.

    """
    if not isinstance(layer, str | nn.Module):
        raise InputTypeError(f"`{argument}` must hold layers or their names, got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    name: str | None
    if isinstance(layer, str):
        name = layer if layer in modules else None
    else:
        inner = unwrapped(layer)
        name = next((name for name, module in modules.items() if unwrapped(module) is inner), None)
    if name is None:
        given = repr(layer) if isinstance(layer, str) else f"a module of type {type(layer).__name__}"
        raise LayerNotFoundError(f"`{argument}` holds {given}, which is no layer of the model. {listed_layers(model)}")
    module = unwrapped(modules[name])
    if not isinstance(module, LAYER_KINDS):
        raise LayerError(
            f"`{argument}` holds {name!r} of type {type(module).__name__}: it must be an nn.Linear or an nn.Conv2d. "
            f"{listed_layers(model)}",
        )
    return name, module


def listed_layers(model: nn.Module) -> str:
    """Return the layers of the two kinds in words, the last ones where there are many."""
    names = [name for name, module in model.named_modules() if isinstance(module, LAYER_KINDS)]
    if not names:
        return "The model has no nn.Linear and no nn.Conv2d."
    few = " (the last ones)" if len(names) > _SHOWN else ""
    return f"Its nn.Linear and nn.Conv2d layers{few}: {', '.join(map(repr, names[-_SHOWN:]))}."


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Linear | nn.Conv2d, Tensor]]:
    """Return the layers with their masks, once all of them are seen to fit."""
    if not isinstance(masks, Mapping):
        raise InputTypeError(f"`masks` must be a mapping from names of layers to masks, got {type(masks).__name__}.")
    found: dict[nn.Linear | nn.Conv2d, Tensor] = {}
    for given, mask in masks.items():
        name, module = named_layer(model, given, argument="masks")
        if "weight" not in module._parameters:  # noqa: SLF001  # a pruned or parametrized weight is an attribute, no parameter
            raise LayerError(
                f"The weight of {name!r} is no plain parameter: it is pruned or parametrized already. Make that "
                f"permanent first (`torch.nn.utils.prune.remove`, `parametrize.remove_parametrizations`).",
            )
        if module in found:
            raise LayerError(f"`masks` holds the layer {name!r} twice, under two names. Give it one mask.")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InputTypeError(f"The mask of {name!r} must be a boolean tensor, True = keep, got {got}.")
        if mask.ndim == 2 and (*mask.shape, 1, 1) == module.weight.shape:
            mask = mask[..., None, None]  # noqa: PLW2901  # the same mask in the convolution's own shape
        if mask.shape != module.weight.shape:
            raise ShapeError(
                f"The mask of {name!r} must have the shape of its weight, {tuple(module.weight.shape)}, got "
                f"{tuple(mask.shape)}.",
            )
        found[module] = mask
    return list(found.items())


@contextmanager
def _masked(module: nn.Module, mask: Tensor) -> Iterator[None]:
    """Hold a mask on one layer's weight, then take it off without a trace."""
    parameters = module._parameters  # noqa: SLF001  # their order is that of the optimizer: `register_parameter` changes it
    order = list(parameters)
    weight = parameters["weight"]
    device = None if weight is None else weight.device
    method: object = None
    try:
        with torch.no_grad():  # the product is taken anew in each forward pass, with a graph where one is wanted
            method = prune.CustomFromMask.apply(module, "weight", mask.to(device))
        yield
    finally:
        hooks = module._forward_pre_hooks  # noqa: SLF001  # torch gives no handle to the hook of a mask
        for key in [key for key, hook in hooks.items() if hook is method]:
            del hooks[key]
        if "weight_orig" in parameters:  # else `prune.remove` has been called meanwhile: what it did is meant to last
            del module.weight, module.weight_mask
            parameters["weight"] = parameters.pop("weight_orig")
        if method is None or list(parameters) != order:
            for name in [name for name in order if name in parameters]:
                parameters[name] = parameters.pop(name)

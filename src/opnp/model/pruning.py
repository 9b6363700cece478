"""Layers by name, and masks on them: put on and taken off again, or for good on a copy."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from opnp.errors import InputTypeError, LayerError, LayerNotFoundError, ShapeError
from opnp.model.borrow import unwrapped

__all__ = ["LAYER_KINDS", "listed_layers", "named_layer", "pruned", "pruned_copy"]

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

"""Choosing layers: which linear layers and convolutions are meant, and whether they do what their kind does."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from opnp.errors import InputTypeError, LayerError, LayerNotFoundError
from opnp.model.listening import plain_tensor
from opnp.model.state import borrowed, unwrapped

__all__ = ["Layer", "chosen_layers", "is_as_its_kind", "named_layer", "tensor_of", "weight_of"]

_KINDS = (nn.Linear, nn.Conv2d)
_SHOWN = 20


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A layer whose sensitivity is to be taken.

    Attributes:
        name: Dotted name in the unwrapped model; empty if the model is nothing but this layer.
        module: The layer itself.
        sharing: Every layer that has this one's weight, itself among them: the weight's gradient is the sum over all.

    """

    name: str
    module: nn.Linear | nn.Conv2d
    sharing: tuple[nn.Linear | nn.Conv2d, ...]


def chosen_layers(
    model: nn.Module, layers: Iterable[str | nn.Module] | None
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by name, and why others are left out, by name.

    Args:
        model: An unwrapped model.
        layers: Layers or their dotted names; None for every `nn.Linear` and `nn.Conv2d`. Only then is anything left
            out: of layers that were named, each must be one that a gradient can be taken of.

    Returns:
        Layers in the order given, or in that of the model, and reasons in words.

    Raises:
        InputTypeError: If `layers` is no list of names and modules.
        LayerNotFoundError: If there is no such layer, or none at all.
        LayerError: If a layer is of another kind, or its weight is not its alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> list(chosen_layers(model, ["2"])[0]), list(chosen_layers(model, None)[0])
        (['2'], ['0', '2'])

    """
    owners = _owners(model)
    if layers is None:
        found = {name: module for name, module in model.named_modules() if isinstance(module, _KINDS)}
    elif isinstance(layers, str | nn.Module | Mapping) or not isinstance(layers, Iterable):
        hint = f' For one layer write `layers=["{layers}"]`.' if isinstance(layers, str) else ""
        raise InputTypeError(f"`layers` must be a list of layers or of their names, got {type(layers).__name__}.{hint}")
    else:
        found = dict(named_layer(model, layer) for layer in layers)
    if not found:
        raise LayerNotFoundError(f"There is no layer to take the sensitivity of. {_listed(model)}")
    chosen, left_out = {}, {}
    for name, module in found.items():
        sharing, reason = _sharing(module, owners)
        if not reason:
            chosen[name] = Layer(name=name, module=module, sharing=sharing)
        elif layers is None:
            left_out[name] = reason
        else:
            raise LayerError(f"The sensitivity of {name!r} cannot be taken: {reason}.")
    return chosen, left_out


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
        raise LayerNotFoundError(f"`{argument}` holds {given}, which is no layer of the model. {_listed(model)}")
    module = unwrapped(modules[name])
    if not isinstance(module, _KINDS):
        raise LayerError(
            f"`{argument}` holds {name!r} of type {type(module).__name__}: it must be an nn.Linear or an nn.Conv2d. "
            f"{_listed(model)}",
        )
    return name, module


def is_as_its_kind(module: nn.Linear | nn.Conv2d, inputs: Tensor, output: Tensor) -> bool:
    """Return whether a layer made of its input what `nn.Linear` or `nn.Conv2d` makes of it with the same weight.

    A subclass with a forward of its own, or a layer whose forward was replaced, is judged by its output: many do the
    same in other words, others change weight or input first, and then the weight's gradient is another.
    """
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    has_own_step = isinstance(module, nn.Conv2d) and type(module)._conv_forward is not nn.Conv2d._conv_forward  # noqa: SLF001  # what forward calls
    if getattr(module.forward, "__func__", None) is kind.forward and not has_own_step:
        return True
    try:
        with torch.no_grad():
            if isinstance(module, nn.Conv2d):
                expected = nn.Conv2d._conv_forward(module, inputs, module.weight, module.bias)  # noqa: SLF001  # as above
            else:
                expected = nn.Linear.forward(module, inputs)
    except RuntimeError:  # the input does not even fit
        return False
    tolerance = 1e-5 * float(expected.abs().amax()) if expected.numel() else 0.0
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=0, atol=tolerance, equal_nan=True)


def weight_of(module: nn.Linear | nn.Conv2d) -> Tensor:
    """Return a layer's weight as its forward has it in eval mode, whatever it is computed from."""
    weight = tensor_of(module, "weight")
    return module.weight if weight is None else weight


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Return a layer's weight or bias as its forward has it in eval mode, whatever it is computed from; None if none.

    One that is parametrized is read in eval mode, in which that writes to no buffer. Of `torch.nn.utils.prune`, and of
    the older `weight_norm` and `spectral_norm`, the attribute is what the last forward made: it is computed anew from
    the parameters of now, and the attribute stays as it is. Of a `DTensor` the whole comes back.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.custom_from_mask(nn.Linear(1, 1), "weight", torch.tensor([[True]]))
        >>> _ = layer.weight_orig.data.fill_(3.0)
        >>> tensor_of(layer, "weight").tolist(), tensor_of(layer, "bias") is layer.bias
        ([[3.0]], True)

    """
    if parametrize.is_parametrized(module, name):
        with borrowed(module):
            found: Tensor | None = getattr(module, name)
    elif name in module._parameters:  # noqa: SLF001  # an attribute that is none is computed by a hook
        found = module._parameters[name]  # noqa: SLF001  # as above
    else:
        found = _of_hook(module, name)
        found = getattr(module, name) if found is None else found
    return None if found is None else plain_tensor(found)


def _of_hook(module: nn.Module, name: str) -> Tensor | None:
    """Return what the hook that sets a tensor before each forward would set now; None if there is no such hook."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001  # torch has no other way to them
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name:  # noqa: SLF001  # as above
            pruned: Tensor = hook.apply_mask(module)
            return pruned
        compute: Any = getattr(hook, "compute_weight", None)
        if compute is not None and getattr(hook, "name", None) == name:
            has_iteration = "do_power_iteration" in inspect.signature(compute).parameters
            made: Tensor = compute(module, **({"do_power_iteration": False} if has_iteration else {}))
            return made
    return None


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return, by identity of each parameter, the modules that hold it and what they call it."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001  # `named_parameters` names each tensor but once
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    return owners


def _sharing(
    module: nn.Linear | nn.Conv2d, owners: Mapping[int, list[tuple[nn.Module, str]]]
) -> tuple[tuple[nn.Linear | nn.Conv2d, ...], str]:
    """Return the layers with this weight; or none, and why its gradient cannot be had from what they see."""
    weight = weight_of(module)
    sharing: list[nn.Linear | nn.Conv2d] = []
    for owner, name in owners.get(id(weight), [(module, "weight")]):
        kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
        if not isinstance(owner, kind) or name != "weight":
            return (
                (),
                f"its weight belongs to a {type(owner).__name__} as well, whose part of the gradient is not known",
            )
        sharing.append(owner)
    if not weight.is_floating_point():
        return (), f"its weight is {weight.dtype}, not floating point"
    return tuple(sharing), ""


def _listed(model: nn.Module) -> str:
    """Return the layers of the two kinds in words, the last ones where there are many."""
    names = [name for name, module in model.named_modules() if isinstance(module, _KINDS)]
    if not names:
        return "The model has no nn.Linear and no nn.Conv2d."
    few = " (the last ones)" if len(names) > _SHOWN else ""
    return f"Its nn.Linear and nn.Conv2d layers{few}: {', '.join(map(repr, names[-_SHOWN:]))}."

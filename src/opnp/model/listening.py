"""Listening at a layer: what it was given, kept as it was then, and hooks that leave no trace, in copies neither."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from opnp.errors import HeadNotFoundError

__all__ = ["given_input", "plain_tensor", "remove_hooks", "set_eval_mode", "sole_input"]


def given_input(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return a copy of what a layer was called with: the model may write to it after the layer has run.

    Example:
        >>> import torch
        >>> given = torch.zeros(1, 2)
        >>> kept = given_input((given,), {})
        >>> given.add_(1), kept
        (tensor([[1., 1.]]), tensor([[0., 0.]]))

    """
    return plain_tensor(sole_input(args, kwargs)).detach().clone()


def sole_input(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return what a layer was called with: the first by position, else the one tensor among the keywords.

    Raises:
        HeadNotFoundError: If there is no such tensor, or more than one.

    Example:
        >>> import torch
        >>> sole_input((), {"x": torch.ones(2), "scale": None})
        tensor([1., 1.])

    """
    if args:
        return args[0]
    tensors = [kwargs["input"]] if "input" in kwargs else [each for each in kwargs.values() if isinstance(each, Tensor)]
    if len(tensors) != 1:
        raise HeadNotFoundError(
            f"A linear layer of the model was called with {len(tensors)} tensors, all by keyword "
            f"({', '.join(kwargs) or 'none'}): which of them is its input cannot be told. Give it its input by "
            f"position, `layer(features)`, or name it `input`.",
        )
    return tensors[0]


def plain_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor of which each rank holds a part (`DTensor`), and any other as it is."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def remove_hooks(handles: Iterable[RemovableHandle], model: nn.Module) -> None:
    """Remove hooks from their modules, and from the copies that the model has made of these modules meanwhile.

    A model that makes a copy of one of its parts in its forward, as a teacher of itself, copies hooks too.
    """
    numbers = []
    for handle in handles:
        handle.remove()
        numbers.append(handle.id)
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            if not getattr(module, kind, None):
                continue
            for number in numbers:
                for suffix in ("", "_with_kwargs"):
                    getattr(module, kind + suffix).pop(number, None)


def set_eval_mode(modules: Iterable[nn.Module]) -> None:
    """Set each module to eval mode, by itself: a model may change its mode in its forward, or have a `train` that does.

    What mode each had before is known to the loan that these modules are under.
    """
    for module in modules:
        if module.training:
            module.training = False

"""The head: the layer that turns features into the model's logits, read as a linear layer whatever it is.

What one forward pass leaves of it are features and logits, once it is seen that they belong together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from opnp.core.checks import require_finite, two_class_head, two_class_logits
from opnp.errors import HeadNotFoundError, InputTypeError, OptionError, ShapeError
from opnp.model.borrow import borrowed
from opnp.model.forward import Inputs, LogitsSelector, logits_of, plain_tensor

__all__ = [
    "Head",
    "HeadLayer",
    "OwnLogits",
    "head_layers",
    "head_outcome",
    "is_as_its_kind",
    "is_vector_a_sample",
    "linear_layers",
    "require_classifier",
    "require_exclusive",
    "require_module",
    "require_values",
    "tensor_of",
    "token_message",
    "weight_of",
]

HeadLayer = nn.Linear | nn.Conv2d
"""What a head can be: a linear layer, or a 1x1 convolution, which is one at each position."""

_ROUNDING = 2.0**-8
"""Share of |features| |weight| that rounding may change a logit by: TensorFloat-32 has 10 bits behind the point."""
_HALF_ROUNDING = 2.0**-6
"""The same in half precision: bfloat16 has 7 bits."""
_LOOKED_AT = 8
"""Rows of a batch after the first whose logits are compared: the first, the last, and some between."""


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
        """The weight as a matrix, shape ``(classes, features)``, without gradient; of one logit that of two classes."""
        return two_class_head(weight_of(self.module).detach().flatten(1), None)[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias, shape ``(classes,)``, without gradient, or None; of one logit that of two classes."""
        bias = tensor_of(self.module, "bias")
        return two_class_head(weight_of(self.module).detach().flatten(1), None if bias is None else bias.detach())[1]

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


def require_values(model: nn.Module) -> None:
    """Raise if the model is none, or has parameters that have no values yet.

    Raises:
        InputTypeError: If `model` is no module.
        HeadNotFoundError: If it has lazy layers that were never run.

    """
    require_module(model)
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise HeadNotFoundError(
            "The model has lazy layers that were never run: they would get their weights now, at random. Run it once "
            "first, or load its weights.",
        )


def require_exclusive(model: nn.Module) -> None:
    """Raise if a model of transformers says that it is none of classes that exclude each other.

    Raises:
        OptionError: If its configuration names a regression, or several labels at once.

    """
    config = getattr(model, "config", None)
    problem, labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if problem == "multi_label_classification" and isinstance(labels, int) and labels > 1:
        raise OptionError(
            f"The model's configuration says `problem_type` = {problem!r}: its {labels} labels do not exclude each "
            f"other, and the scores here are those of a softmax over classes of which one is right. Give a model of "
            f"exclusive classes, or one label at a time, by `fit_features` with that label's row of the head.",
        )
    if problem == "regression" or (problem is None and labels == 1 and hasattr(config, "problem_type")):
        raise OptionError(
            "The model's configuration names a regression (`problem_type`, or one label without it): there are no "
            "classes, and the scores here are those of classifiers. If its one logit was trained by binary "
            'cross-entropy, say so: `model.config.problem_type = "multi_label_classification"`.',
        )


def require_classifier(head: Head, *, is_plain: bool) -> None:
    """Raise if a head is none of a classifier, or not linear in what it does.

    Args:
        head: The head.
        is_plain: Whether its output was what a layer of its kind makes of its input.

    Raises:
        HeadNotFoundError: If it has a forward of its own.
        InputTypeError: If its weight or bias cannot be read as numbers: on the meta device, sparse, quantised, complex.
        NonFiniteError: If these are not finite.
    """
    for name in ("weight", "bias"):
        tensor = tensor_of(head.module, name)
        if tensor is not None:
            _require_numbers(tensor, f"The {name} of the head {head.label}")
    if not is_plain:
        raise HeadNotFoundError(
            f"The head {head.label} is a {type(head.module).__name__} with a forward of its own: its output is not "
            f"`features @ weight.T + bias`, so that pruning its weight is not what the method says. Where an equal "
            f"linear layer exists, cache the features and use `fit_features` with its weight and bias.",
        )
    require_finite(head.weight, name="weight", where=f" of the head {head.label}")
    if head.bias is not None:
        require_finite(head.bias, name="bias", where=f" of the head {head.label}")


def is_as_its_kind(module: HeadLayer, inputs: Tensor, output: Tensor) -> bool:
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


def weight_of(module: HeadLayer) -> Tensor:
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
            is_iterated = isinstance(hook, SpectralNorm)
            made: Tensor = compute(module, do_power_iteration=False) if is_iterated else compute(module)
            return made
    return None


def head_outcome(
    head: Head, received: list[Tensor], answer: object, inputs: Inputs, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the (features, logits) of one forward pass.

    Args:
        head: The head.
        received: What it was given, call by call.
        answer: What the model answered.
        inputs: What the model was given.
        labels: Labels of the samples, if there are any: they say how many samples there are, in bags and pairs too.

    Returns:
        Features and logits, shapes ``(batch, features)`` and ``(batch, classes)``. Where the model's logits are the
        head's output they are taken from the answer, else they are computed. `OwnLogits` looks at the values.

    Raises:
        HeadNotFoundError: If the head did not run once.
        ShapeError: If it was not given one vector a sample, or the logits have another shape.

    """
    features = _one_vector_a_sample(received, head).detach()
    _require_row_for_each(inputs, labels, features, head)
    logits = logits_of(answer, head.logits) if head.is_output else None
    weight = head.weight
    if logits is None:
        return features, _computed(features, weight, head.bias).to(torch.promote_types(features.dtype, weight.dtype))
    logits = plain_tensor(logits).detach()
    if len(weight_of(head.module)) == 1:
        logits = two_class_logits(logits)
    shape = len(features), len(weight)
    if logits.numel() == shape[0] * shape[1] and (shape[0] == 1 or logits.shape[0] == shape[0]):
        logits = logits.reshape(shape)
    if logits.shape != shape:
        raise ShapeError(
            f"The model's logits must have shape {shape}, as the head {head.label} makes them, got "
            f"{tuple(logits.shape)}. Return them as the head makes them, one row a sample.",
        )
    return features, logits


class OwnLogits:
    """Compares a model's logits with what the head makes of the features, batch by batch of one pass.

    The first batch is compared as a whole, of later ones a few rows: a model answers by another layer for a batch, not
    for a row.
    """

    def __init__(self, head: Head) -> None:
        """Begin a pass."""
        self._head = head
        self._norms: Tensor | None = None

    def require(self, features: Tensor, logits: Tensor) -> None:
        """Raise if the logits are not what the head makes of the features, more than rounding allows.

        Raises:
            HeadNotFoundError: If so.

        """
        head = self._head
        if not head.is_output or not len(features):  # logits that were computed are the head's
            return
        weight, bias = head.weight, head.bias
        if self._norms is not None and len(features) > _LOOKED_AT:
            rows = torch.linspace(0, len(features) - 1, _LOOKED_AT, dtype=torch.float64, device="cpu").round().long()
            features, logits = features[rows.to(features.device)], logits[rows.to(features.device)]
        halves = {torch.float16, torch.bfloat16} & {logits.dtype, features.dtype, weight.dtype}
        is_half = bool(halves) or torch.is_autocast_enabled(features.device.type)
        expected = _computed(features, weight, bias)
        if self._norms is None:
            self._norms = weight.to(expected.dtype).norm(dim=1)
        size = torch.outer(features.to(expected.dtype).norm(dim=1), self._norms.to(expected.dtype))
        if bias is not None:
            size += bias.to(expected.dtype).abs()
        off = (logits.to(expected.dtype) - expected).abs() > (_HALF_ROUNDING if is_half else _ROUNDING) * size
        off &= logits.isfinite()  # what is not finite is told by itself
        if bool(off.any()):
            raise HeadNotFoundError(
                f"The model's logits are not what its head {head.label} makes of its input, "
                f"`features @ weight.T + bias`, in {int(off.any(1).sum())} of {len(off)} rows. Either a hook on the "
                f"layer changes its output, or the model clamps or masks its logits, or it answers by another layer "
                f"in some batches. Take the hook off, or name the head yourself with the logits left to it: "
                f"`head=...`, `logits=lambda output: ...`.",
            )


def _computed(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the head's logits of features, float32 at least, whatever autocast the caller is in."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, weight.dtype), torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return linear(features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _require_row_for_each(inputs: Inputs, labels: Tensor | None, features: Tensor, head: Head) -> None:
    """Raise if the head was not given as many rows as there are samples; recurrent layers have these on axis 1."""
    if not isinstance(inputs, Tensor) or inputs.ndim < 2 or len(features) in inputs.shape[:2]:
        return
    if labels is not None and len(labels) == len(features):
        return
    raise ShapeError(
        f"The head {head.label} received {len(features)} rows for a batch of {len(inputs)} inputs: it must get one "
        f"vector a sample, in their order. Cache one vector of features a sample, and use the `*_features` methods. If "
        f'a sample is several inputs, a bag or a pair, give the batch as a mapping, `{{"x": bag}}`, or with one label '
        f"a sample, `(bag, labels)`.",
    )


def token_message(label: str, shape: tuple[int, ...], *, read: str = "") -> str:
    """Return what to say of a layer that runs on every token; `read` is what the model does with its output."""
    return (
        f"{label} received features of shape {shape}: it runs on every token or position, but a head must get one "
        f"vector a sample, (batch, features).{read} Cache the features of the token whose logits the model returns "
        f"(in GPT-2 and Llama the last one that is not padding), or pool them as the model does, and use "
        f"`fit_features` and the other `*_features` methods with this layer's weight and bias."
    )


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
    if features.ndim == _axes_without_batch(head.module):
        raise ShapeError(
            f"The head {head.label} received features of shape {tuple(features.shape)}, which have no batch axis: the "
            f"model drops it of a batch of one, as `squeeze()` does. Let it keep the first axis, "
            f"`features.flatten(1)`, or give batches of two inputs or more.",
        )
    if not is_vector_a_sample(features.shape):
        raise ShapeError(token_message(f"The head {head.label}", tuple(features.shape)))
    return features.flatten(1)


def is_vector_a_sample(shape: tuple[int, ...]) -> bool:
    """Return whether features have one vector a sample; axes of length 1 may stand between.

    Example:
        >>> is_vector_a_sample((8, 16)), is_vector_a_sample((8, 1, 16)), is_vector_a_sample((8, 3, 16))
        (True, True, False)

    """
    return len(shape) > 1 and all(length == 1 for length in shape[1:-1])


def _axes_without_batch(module: HeadLayer) -> int:
    """Return the number of axes of what a head receives of one sample that has no batch axis."""
    return 3 if isinstance(module, nn.Conv2d) else 1


def _can_be_head(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear)
    is_by_position = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return is_by_position and module.padding in ((0, 0), "same", "valid")


def _require_numbers(tensor: Tensor, what: str) -> None:
    """Raise if a tensor is none of plain floating-point numbers in memory."""
    if tensor.is_meta:
        raise InputTypeError(
            f"{what} is on the meta device, where it has no values: load the model's weights first, or move what was "
            f"offloaded back to a device.",
        )
    if tensor.layout is not torch.strided:
        raise InputTypeError(
            f"{what} is sparse ({tensor.layout}): it must be dense. Give the layer a dense weight: "
            f"`torch.nn.Parameter(layer.weight.to_dense())`.",
        )
    if tensor.is_quantized or not tensor.is_floating_point():
        raise InputTypeError(
            f"{what} must be of floating-point numbers, got {tensor.dtype}. Give the model as it was before it was "
            f"quantised, or replace this layer by a real nn.Linear of the same numbers.",
        )

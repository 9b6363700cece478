"""What one forward pass leaves of a head: features and logits, once it is seen that they belong together."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model.batches import Inputs
from opnp.model.head import Head
from opnp.model.head_messages import token_message
from opnp.model.listening import plain_tensor
from opnp.model.outputs import logits_of

__all__ = ["OwnLogits", "head_outcome"]

_ROUNDING = 2.0**-8
"""Share of |features| |weight| that rounding may change a logit by: TensorFloat-32 has 10 bits behind the point."""
_HALF_ROUNDING = 2.0**-6
"""The same in half precision: bfloat16 has 7 bits."""
_LOOKED_AT = 8
"""Rows of a batch after the first whose logits are compared: the first, the last, and some between."""


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
    shape = len(features), len(weight)
    if logits.shape[0] == shape[0] and logits.flatten(1).shape == shape:
        logits = logits.flatten(1)
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
            rows = torch.linspace(0, len(features) - 1, _LOOKED_AT, dtype=torch.float64).round().long()
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
        f"vector a sample, in their order. Does the model leave samples out, repeat them, or take apart crops, frames "
        f"or tokens? Cache one vector of features a sample, and use the `*_features` methods. If a sample is several "
        f'inputs, a bag or a pair, give the batch as a mapping, `{{"x": bag}}`, or with one label a sample, '
        f"`(bag, labels)`.",
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
    if features.ndim != 2:
        raise ShapeError(token_message(f"The head {head.label}", tuple(features.shape)))
    return features

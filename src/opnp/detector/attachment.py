"""The tie between a detector and the user's model: where features come from when inputs are given."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from opnp.core.checks import require_finite
from opnp.core.sensitivity import with_float64
from opnp.errors import HeadMismatchError, InputTypeError, PrecisionWarning
from opnp.fitted import head_digest
from opnp.model import (
    BatchHalving,
    BatchReader,
    Head,
    InputAxes,
    head_layers,
    head_stream,
    head_tap,
    unwrapped,
)

__all__ = ["ModelLink", "linked_by_digest"]


@dataclass(frozen=True, eq=False, slots=True)
class ModelLink:
    """A model with its head.

    Attributes:
        model: The user's model.
        head: Its head.
        axes: Number of axes of a batch of inputs; None if no batch was seen.
        device: Where to run; None for where the model is.
        weight: Weight of the head that the detector was fitted on.
        bias: Its bias, or None.
        halving: How batches are run that need more memory than there is.

    """

    model: nn.Module
    head: Head
    axes: InputAxes | None
    device: torch.device | str | None
    weight: Tensor
    bias: Tensor | None
    halving: BatchHalving

    def features_of(self, inputs: object) -> tuple[Tensor, bool]:
        """Return the features of one batch or one input, shape ``(batch, features)``, and whether it was one input.

        Raises:
            InputTypeError: If `inputs` is a loader, or of a kind that cannot be read.
            HeadMismatchError: If the model's head has changed since the detector was fitted.
            NonFiniteError: If features are not finite.
            InsufficientMemoryError: If the model, or the batch in it, needs more memory than there is.

        """
        if isinstance(inputs, Dataset):
            raise InputTypeError(
                f"This takes a loader, a batch or an input, got a {type(inputs).__name__}. Give a loader of it: "
                f"`DataLoader(dataset, batch_size=64)`.",
            )
        if _is_loader(inputs):
            raise InputTypeError(
                f"This takes one batch or one input, got a {type(inputs).__name__}. Go through it: "
                f"`with detector.feature_batches(loader) as batches:`.",
            )
        batch = BatchReader.of(self.model, classes=len(self.weight), is_inside=False).read(inputs, axes=self.axes)
        with head_tap(self.model, self.head, device=self.device, is_checked=False) as tap:
            self.require_unchanged()  # of a computed weight, too, the model is lent to this thread alone
            features, _ = self.halving.outcome(partial(tap, labels=batch.labels), batch.inputs)
        require_finite(features, name="features")
        return with_float64(features), batch.is_single

    def answers(self, inputs: object, answer: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what `answer` gives for the features of one batch, of one input, or of all batches of a loader.

        Args:
            inputs: A batch; one input, whose answers lose the batch axis; or a loader, whose answers are joined in its
                order. Of a loader one batch of features is held at a time.
            answer: Tensors with a row for each row of features.

        Raises:
            EmptyDataError: If a loader yields nothing.
            InputTypeError: If batches are of a kind that cannot be read.
            HeadMismatchError: If the model's head has changed since the detector was fitted.
            NonFiniteError: If features are not finite.

        """
        if not _is_loader(inputs):
            features, is_single = self.features_of(inputs)
            return tuple(values[0] if is_single else values for values in answer(features))
        with self.feature_batches(inputs, is_inside=False) as batches:
            parts = [answer(features) for features, _ in batches]
        return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))

    @contextmanager
    def feature_batches(
        self, loader: Iterable[object], *, is_inside: bool = True
    ) -> Iterator[Iterator[tuple[Tensor, Tensor | None]]]:
        """Open the model for one pass over `loader`; yields an iterator of (features, labels or None)."""
        self.require_unchanged()
        opened = head_stream(
            self.model,
            loader,
            head=self.head,
            device=self.device,
            halving=self.halving,
            is_checked=False,
            is_inside=is_inside,
        )
        with opened as stream:
            yield ((with_float64(features), labels) for features, _, labels in stream.batches)

    def require_unchanged(self) -> None:
        """Raise `HeadMismatchError` if the head's tensors are not those the detector was fitted on.

        Their values are compared: addresses and version counters miss what is written through `.data`.
        """
        modules = dict(unwrapped(self.model).named_modules(remove_duplicate=False))
        head = self.head
        is_in_place = modules.get(head.name) is head.module
        if is_in_place and _is_same(head.weight, self.weight) and _is_same(head.bias, self.bias):
            return
        raise HeadMismatchError(
            f"The model's head {self.head.label} is not the one this detector was fitted on: its weights have "
            f"changed since. Fit again, or bring the old weights back.",
        )


def _is_loader(inputs: object) -> TypeGuard[Iterable[object]]:
    """Return whether inputs are batches to go through: a DataLoader, a generator, or what else has no items by place.

    A list or tuple is one batch, as a loader yields it; so is a mapping.
    """
    is_batch = hasattr(inputs, "__getitem__") and not isinstance(inputs, DataLoader)
    return isinstance(inputs, Iterable) and not is_batch


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether dtype, shape and values are equal, on whatever devices."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one.detach(), other.to(one.device))


def linked_by_digest(
    model: nn.Module,
    *,
    weight: Tensor,
    bias: Tensor | None,
    name: str | None,
    axes: InputAxes | None,
    device: torch.device | str | None,
    halving: BatchHalving,
) -> ModelLink:
    """Return the link to the layer of `model` with this weight and bias.

    Args:
        model: The model that a saved detector is to serve.
        weight: Weight of the head that the detector was fitted on.
        bias: Its bias, or None.
        name: The head's dotted name then, preferred where several layers are equal.
        axes: Number of axes of a batch of inputs.
        device: Where to run; None for where the model is.
        halving: How batches are run that need more memory than there is.

    Returns:
        The link.

    Raises:
        HeadMismatchError: If no layer of the model has these.

    """
    heads = {
        found: Head(name=found, module=layer, is_output=False, is_averaged=isinstance(layer, nn.Conv2d))
        for found, layer in head_layers(unwrapped(model)).items()
    }
    digest = head_digest(weight, bias)
    fitting = [found for found, head in heads.items() if _has_digest(head, weight, digest)]
    if not fitting:
        fitting = [found for found, head in heads.items() if _is_stored_anew(head, weight, bias)]
        for found in fitting[:1]:
            head = heads[found]
            warnings.warn(
                f"The head, {head.label}, has the weights of the detector's fit rounded to half precision, or the "
                f"reverse: scores differ a little. Calibrate anew for exact verdicts.",
                PrecisionWarning,
                stacklevel=3,
            )
            name, weight = found, head.weight.detach().clone()
            bias = None if head.bias is None else head.bias.detach().clone()
    if not fitting:
        place = f"`{name}`" if name in heads else "any nn.Linear or 1x1 convolution"
        raise HeadMismatchError(
            f"The detector was fitted on a head with digest {digest[:12]}, and the model given has other weights (or "
            f"another dtype) in {place}. Load the weights that the detector was fitted on, or fit again.",
        )
    chosen = name if name is not None and name in fitting else fitting[0]
    return ModelLink(model, heads[chosen], axes, device, weight=weight, bias=bias, halving=halving)


def _is_stored_anew(head: Head, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a layer and the head of the fit differ by one of them having been rounded to half precision."""
    if any(map(is_lazy, head.module.parameters())) or head.weight.shape != weight.shape:
        return False
    if head.bias is None or bias is None:
        return head.bias is bias and _is_rounded([head.weight], [weight])
    return _is_rounded([head.weight, head.bias], [weight, bias])


def _is_rounded(ones: list[Tensor], others: list[Tensor]) -> bool:
    left, right = (torch.cat([each.detach().double().cpu().flatten() for each in side]) for side in (ones, others))
    return any(
        torch.equal(left.to(kind).double(), right) or torch.equal(right.to(kind).double(), left)
        for kind in (torch.float16, torch.bfloat16)
    )


def _has_digest(head: Head, weight: Tensor, digest: str) -> bool:
    """Return whether a layer's weight and bias have a digest; most layers are told apart by their shape."""
    if any(map(is_lazy, head.module.parameters())) or head.weight.shape != weight.shape:
        return False
    return head_digest(head.weight, head.bias) == digest

"""Step 1 of the method on a stream: sums that give the sensitivities of the head, and what shaping needs."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.core.checks import checked_matrix, require_finite
from opnp.core.histogram import ValueHistogram
from opnp.core.sensitivity import Precision, Sensitivity, SensitivitySum, product_dtype
from opnp.detector.blocks import width_message
from opnp.detector.settings import Settings
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, ShapeError

__all__ = ["FitSum", "Fitted", "checked_head", "fit_sum", "head_logits"]

_BYTES_OF_FLOAT32 = 4


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """What one pass over the training data leaves: O(classes x features), whatever the number of samples.

    Attributes:
        sensitivity: Sensitivities of the head's weights and inputs.
        weight: The head's weight as it was, shape ``(classes, features)``.
        bias: The head's bias as it was, shape ``(classes,)``, or None.
        react_thresholds: Thresholds of ReAct in units of the features, by quantile.

    """

    sensitivity: Sensitivity
    weight: Tensor
    bias: Tensor | None
    react_thresholds: Mapping[float, float]


@dataclass(frozen=True, eq=False, slots=True)
class FitSum:
    """What a pass leaves of the samples seen so far: a value that adds up over batches, runs and ranks.

    Attributes:
        sensitivity: Sums of absolute gradients.
        histogram: Counts of the features' values, for thresholds of ReAct; None where none is needed.

    """

    sensitivity: SensitivitySum
    histogram: ValueHistogram | None

    @classmethod
    def zeros(cls, weight: Tensor, *, is_counting: bool) -> Self:
        """Return the empty sum for a head, which counts values or does not."""
        return cls(
            sensitivity=SensitivitySum.zeros(*weight.shape, device=weight.device),
            histogram=ValueHistogram.zeros(device=weight.device) if is_counting else None,
        )

    def __add__(self, other: object) -> "FitSum":
        """Return the sum over both parts of the data; both count values, or neither does."""
        if not isinstance(other, FitSum):
            return NotImplemented
        is_counting = self.histogram is not None and other.histogram is not None
        return FitSum(
            sensitivity=self.sensitivity + other.sensitivity,
            histogram=self.histogram + other.histogram if is_counting else None,  # type: ignore[operator]  # neither is None
        )

    def absorbed(self, other: Self) -> Self:
        """Return the sum as `+` does, in the memory of this one, which is used up."""
        mine, more = self.sensitivity, other.sensitivity
        total = SensitivitySum(
            weight=mine.weight.add_(more.weight), neuron=mine.neuron.add_(more.neuron), count=mine.count + more.count
        )
        histogram = self.histogram
        if histogram is not None and other.histogram is not None:
            histogram = ValueHistogram(histogram.counts.add_(other.histogram.counts))
        return replace(self, sensitivity=total, histogram=histogram)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sum as tensors by name, each of which adds up by itself, for `from_tensors`."""
        count = torch.tensor([self.sensitivity.count], device=self.sensitivity.weight.device)
        tensors = {"weight": self.sensitivity.weight, "neuron": self.sensitivity.neuron, "count": count}
        return tensors if self.histogram is None else tensors | {"histogram": self.histogram.counts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the sum that `to_tensors` gave.

        Raises:
            KeyError: If a tensor is missing.

        """
        total = SensitivitySum(weight=tensors["weight"], neuron=tensors["neuron"], count=int(tensors["count"]))
        return cls(total, ValueHistogram(tensors["histogram"]) if "histogram" in tensors else None)

    def fitted(self, weight: Tensor, bias: Tensor | None, *, react_quantiles: Collection[float]) -> Fitted:
        """Return the means over the samples, with the head they belong to and thresholds at these quantiles.

        Raises:
            EmptyDataError: If there was no sample.
            NonFiniteError: If sums or thresholds are not finite.

        """
        if self.sensitivity.count == 0:
            raise EmptyDataError("There are no training samples: sensitivities need at least one.")
        histogram = self.histogram
        thresholds = {} if histogram is None else {q: histogram.quantile(q) for q in react_quantiles}
        if not all(map(math.isfinite, thresholds.values())):
            raise NonFiniteError(
                f"Thresholds of ReAct must lie within float32, which ends at 3.4e38, got {thresholds} by quantile. "
                f"Scale the features down, or use another `shaping`."
            )
        return Fitted(sensitivity=self.sensitivity.mean(), weight=weight, bias=bias, react_thresholds=thresholds)


def fit_sum(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    weight: Tensor,
    bias: Tensor | None,
    settings: Settings,
    is_counting: bool,
) -> FitSum:
    """Return what one pass over (features, logits) leaves.

    Args:
        batches: Features, shape ``(batch, features)``, with logits, shape ``(batch, classes)``, or None to have them
            computed. Those of half precision are computed anew, as they have lost digits that the features have, and
            in precision ``"float64"`` all are.
        weight: The head's weight, shape ``(classes, features)``.
        bias: The head's bias, shape ``(classes,)``, or None.
        settings: Temperature and precision.
        is_counting: Whether to count the features' values, for thresholds of ReAct.

    Returns:
        The sums; of no batch, zeros.

    Raises:
        ShapeError: If features and head do not fit together.

    """
    histogram = ValueHistogram.zeros(device=weight.device) if is_counting else None

    def observed() -> Iterator[tuple[Tensor, Tensor]]:
        for features, logits in batches:
            if features.shape[1:] != weight.shape[1:]:
                raise ShapeError(width_message(tuple(features.shape), weight))
            if histogram is not None:
                histogram.add_(features)
            if logits is None or settings.precision == "float64" or logits.dtype.itemsize < _BYTES_OF_FLOAT32:
                computed = head_logits(features, weight, bias, precision=settings.precision)
                require_finite(computed, name="logits")
                yield features, computed
            else:
                yield features, logits

    total = SensitivitySum.from_batches(
        observed(), weight, temperature=settings.temperature, precision=settings.precision
    )
    return FitSum(total, histogram)


def checked_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias if they are those of a classifier's head, else say what is wrong.

    Raises:
        ShapeError: If the shapes are wrong, or there are fewer than two classes.
        InputTypeError: If they are no floating-point tensors.
        NonFiniteError: If they hold NaN or infinite values.

    """
    checked_matrix(weight, name="weight", axes="(classes, features)")
    if len(weight) < 2:
        raise ShapeError(
            f"`weight` must have a row for each of at least two classes, got {len(weight)}. One logit z says the same "
            f"as the two logits -z/2 and z/2: use `torch.cat([-weight, weight]) / 2`, and the bias alike.",
        )
    require_finite(weight.detach(), name="weight")
    if bias is not None:
        if not isinstance(bias, Tensor) or not bias.is_floating_point():
            got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
            raise InputTypeError(f"`bias` must be a floating-point torch.Tensor of shape (classes,), got {got}.")
        if bias.shape != weight.shape[:1]:
            raise ShapeError(f"`bias` must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
        if not bool(torch.isfinite(bias).all()):
            raise NonFiniteError(
                f"`bias` must be finite, got {int((~torch.isfinite(bias)).sum())} entries that are not."
            )
    return weight, bias


def head_logits(features: Tensor, weight: Tensor, bias: Tensor | None, *, precision: Precision) -> Tensor:
    """Return the head's logits of features, shape ``(batch, classes)``, whatever autocast the caller is in."""
    dtype = product_dtype(features, precision=precision)
    with torch.autocast(features.device.type, enabled=False):
        return linear(features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

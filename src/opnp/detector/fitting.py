"""Step 1 of the method on a stream: sensitivities of the head, and what shaping needs, in one pass."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.core.checks import checked_matrix, require_class_indices, require_finite
from opnp.core.histogram import ValueHistogram
from opnp.core.sensitivity import Precision, Sensitivity, SensitivitySum, product_dtype
from opnp.detector.settings import Settings
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, ShapeError

__all__ = ["FeatureBlocks", "Fitted", "LabelledBlocks", "checked_head", "fitted_on", "head_logits"]

_ROWS = 8192


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


def fitted_on(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    weight: Tensor,
    bias: Tensor | None,
    settings: Settings,
    react_quantiles: Collection[float] = (),
) -> Fitted:
    """Return what one pass over (features, logits) leaves.

    Args:
        batches: Features, shape ``(batch, features)``, with logits, shape ``(batch, classes)``, or None to have them
            computed. In precision ``"float64"`` they are computed in any case.
        weight: The head's weight, shape ``(classes, features)``.
        bias: The head's bias, shape ``(classes,)``, or None.
        settings: Temperature and precision.
        react_quantiles: Quantiles of the features to take thresholds of ReAct at.

    Returns:
        Sensitivities, and a copy of the head.

    Raises:
        EmptyDataError: If there was no sample.
        ShapeError: If features and head do not fit together.

    """
    histogram: ValueHistogram | None = None

    def observed() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal histogram
        for features, logits in batches:
            if features.shape[1:] != weight.shape[1:]:
                raise ShapeError(_width_message(features, weight))
            if react_quantiles:
                counts = ValueHistogram.from_values(features)
                histogram = counts if histogram is None else histogram + counts
            if logits is None or settings.precision == "float64":
                computed = head_logits(features, weight, bias, precision=settings.precision)
                require_finite(computed, name="logits")
                yield features, computed
            else:
                yield features, logits

    weight = weight.detach().clone()
    bias = None if bias is None else bias.detach().clone()
    total = SensitivitySum.from_batches(
        observed(), weight, temperature=settings.temperature, precision=settings.precision
    )
    if total.count == 0:
        raise EmptyDataError("There are no training samples: sensitivities need at least one.")
    return Fitted(
        sensitivity=total.mean(),
        weight=weight,
        bias=bias,
        react_thresholds={} if histogram is None else {share: histogram.quantile(share) for share in react_quantiles},
    )


@dataclass(frozen=True, eq=False, slots=True)
class FeatureBlocks:
    """A feature matrix as blocks of rows on the device of a head, checked as they pass.

    Attributes:
        features: Shape ``(batch, features)``.
        weight: The head's weight, shape ``(classes, features)``.
        name: Name of the argument, for messages.

    Raises:
        EmptyDataError: If there are no rows.
        ShapeError: If the width is not the head's.
        InputTypeError: If `features` is no floating-point tensor.
        NonFiniteError: While iterating, if a block holds NaN or infinite values.

    """

    features: Tensor
    weight: Tensor
    name: str = "features"

    def __post_init__(self) -> None:
        """Check type and shape."""
        checked_matrix(self.features, name=self.name, axes="(batch, features)")
        if self.features.shape[1:] != self.weight.shape[1:]:
            raise ShapeError(_width_message(self.features, self.weight, name=self.name))
        if len(self.features) == 0:
            raise EmptyDataError(f"`{self.name}` has no rows: at least one sample is needed.")

    def __len__(self) -> int:
        """Return the number of blocks."""
        return math.ceil(len(self.features) / _ROWS)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield blocks of shape ``(rows, features)``."""
        for start in range(0, len(self.features), _ROWS):
            block = self.features[start : start + _ROWS].detach()
            require_finite(block, name=self.name, first_row=start)
            yield block.to(self.weight.device)


@dataclass(frozen=True, eq=False, slots=True)
class LabelledBlocks:
    """Blocks of features with their labels.

    Attributes:
        blocks: The features.
        labels: Class indices, shape ``(batch,)``, or None.

    Raises:
        ShapeError: If there is not one label for each sample.
        InputTypeError: If labels are no integers.
        OptionError: If a label is no class index of the head.

    """

    blocks: FeatureBlocks
    labels: Tensor | None

    def __post_init__(self) -> None:
        """Check the labels."""
        _require_labels(self.labels, samples=len(self.blocks.features), classes=len(self.blocks.weight))

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield pairs of shapes ``(rows, features)`` and ``(rows,)``, the second None without labels."""
        for index, rows in enumerate(self.blocks):
            yield rows, None if self.labels is None else self.labels[index * _ROWS : (index + 1) * _ROWS]


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


def _require_labels(labels: Tensor | None, *, samples: int, classes: int) -> None:
    """Raise if labels, where given, are not one class index a sample."""
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"`labels` must be a torch.Tensor of class indices, got {type(labels).__name__}.")
    if labels.shape != (samples,):
        raise ShapeError(f"`labels` must have shape ({samples},), one a sample, got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"`labels` must be integer class indices, got {labels.dtype}.")
    require_class_indices(labels, classes=classes)


def _width_message(features: Tensor, weight: Tensor, *, name: str = "features") -> str:
    return (
        f"`{name}` must have {weight.shape[1]} columns, one for each input of the head, got shape "
        f"{tuple(features.shape)}. Take them where the head takes its input."
    )

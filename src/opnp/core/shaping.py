"""Shaping of features before the head: ReAct, ASH-S and SCALE.

Each function maps features h, shape ``(batch, features)``, to shaped features of the same shape and dtype, row by row.
A row of zeros stays a row of zeros. The exponent of ASH-S and SCALE is at most 40, and what they give in half precision
at most its largest number. The papers assume features that are not negative (after a ReLU); given negative ones the
functions still return finite values and warn.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, checked_matrix
from opnp.errors import NonFiniteError, OptionError, SignedFeaturesWarning

__all__ = ["ASHS", "SCALE", "ReAct", "Shaping", "ash_s", "react", "scale", "shaped", "shaped_rows"]

_TOO_LARGE = (
    "`features` must be finite and small enough to be shaped: {what} is not finite in {dtype}. Look for broken inputs, "
    "scale the features down, or give them in float64."
)
_LARGEST_EXPONENT = 40.0
"""Bound on the exponent of ASH-S and SCALE, far beyond any published setting, that keeps float32 finite."""


@dataclass(frozen=True, slots=True)
class ReAct:
    """ReAct with the threshold at a quantile of all training features.

    Attributes:
        quantile: Fraction of the training features below the threshold, in (0, 1). The paper uses 0.9.

    Example:
        >>> ReAct(0.95)
        ReAct(quantile=0.95)

    """

    quantile: float = 0.9

    def __post_init__(self) -> None:
        """Check the quantile."""
        checked_fraction(self.quantile, name="ReAct.quantile")


@dataclass(frozen=True, slots=True)
class ASHS:
    """ASH-S: all but the largest features of a sample are dropped, the rest scaled up.

    Attributes:
        quantile: Fraction of each sample's features that is dropped, in (0, 1). The paper uses 0.9 on ImageNet and
            0.95 on the CIFAR DenseNet.

    Example:
        >>> ASHS()
        ASHS(quantile=0.9)

    """

    quantile: float = 0.9

    def __post_init__(self) -> None:
        """Check the quantile."""
        checked_fraction(self.quantile, name="ASHS.quantile")


@dataclass(frozen=True, slots=True)
class SCALE:
    """SCALE: the factor of ASH-S, with no feature dropped.

    Attributes:
        quantile: Fraction of each sample's features left out of the denominator, in (0, 1). The paper uses 0.85.

    Example:
        >>> SCALE()
        SCALE(quantile=0.85)

    """

    quantile: float = 0.85

    def __post_init__(self) -> None:
        """Check the quantile."""
        checked_fraction(self.quantile, name="SCALE.quantile")


Shaping = ReAct | ASHS | SCALE


def shaped(features: Tensor, shaping: Shaping | None, *, threshold: float | None = None) -> Tensor:
    """Return the features after `shaping`, or as they are when it is None.

    Args:
        features: Shape ``(batch, features)``.
        shaping: What to apply, or None.
        threshold: The threshold of ReAct, in units of the features; needed by ReAct alone.

    Returns:
        Shaped features, shape, dtype and device of `features`.

    Raises:
        OptionError: If `shaping` is none of those, or ReAct has no threshold.
        ShapeError: If `features` is no matrix.

    Warns:
        SignedFeaturesWarning: If there are negative features and a shaping that assumes none.

    Example:
        >>> import torch
        >>> shaped(torch.tensor([[0.5, 3.0]]), ReAct(), threshold=1.0).tolist()
        [[0.5, 1.0]]

    """
    match shaping:
        case None:
            return features
        case ReAct():
            _checked_features(features, method="ReAct")
            return shaped_rows(features, shaping, threshold=threshold)
        case ASHS(quantile):
            return ash_s(features, quantile=quantile)
        case SCALE(quantile):
            return scale(features, quantile=quantile)
    raise OptionError(f"`shaping` must be None, ReAct(...), ASHS(...) or SCALE(...), got {shaping!r}.")


def react(features: Tensor, *, threshold: float) -> Tensor:
    """Return the features clipped from above: min(h, c).

    Args:
        features: Shape ``(batch, features)``.
        threshold: The clip c, in units of the features.

    Returns:
        Clipped features, shape, dtype and device of `features`.

    Raises:
        ShapeError: If `features` is no matrix.

    Warns:
        SignedFeaturesWarning: If there are negative features, which stay unclipped from below.

    Example:
        >>> import torch
        >>> react(torch.tensor([[0.5, 3.0]]), threshold=1.0).tolist()
        [[0.5, 1.0]]

    References:
        Sun, Guo and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021, equation 2.

    """
    _checked_features(features, method="ReAct")
    return features.clamp_max(threshold)


def ash_s(features: Tensor, *, quantile: float = 0.9) -> Tensor:
    """Return the largest features of each row times exp(s1 / s2), the others zero.

    s1 is the sum of the row, s2 the sum of what is kept: the k = n - round(quantile n) largest features, at least one,
    and those equal to the last of them, so that the result does not depend on the order of equal features.

    Args:
        features: Shape ``(batch, features)``.
        quantile: Fraction of each row to drop, in (0, 1).

    Returns:
        Shaped features, shape, dtype and device of `features`.

    Raises:
        ShapeError: If `features` is no matrix.
        OptionError: If `quantile` lies outside (0, 1).
        NonFiniteError: If features are not finite, or too large to be summed or shaped in float32.

    Warns:
        SignedFeaturesWarning: If there are negative features.

    Example:
        >>> import torch
        >>> ash_s(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), quantile=0.75).tolist()
        [[0.0, 2.7182817459106445, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]

    References:
        Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023, ASH-S.

    """
    _checked_features(features, method="ASH-S")
    return _checked_shaped(features, ASHS(checked_fraction(quantile, name="quantile")))


def scale(features: Tensor, *, quantile: float = 0.85) -> Tensor:
    """Return each row times exp(s1 / s2), s1 its sum and s2 the sum of its k = n - round(quantile n) largest features.

    Args:
        features: Shape ``(batch, features)``.
        quantile: Fraction of each row left out of s2, in (0, 1).

    Returns:
        Scaled features, shape, dtype and device of `features`.

    Raises:
        ShapeError: If `features` is no matrix.
        OptionError: If `quantile` lies outside (0, 1).
        NonFiniteError: If features are not finite, or too large to be summed or shaped in float32.

    Warns:
        SignedFeaturesWarning: If there are negative features.

    Example:
        >>> import torch
        >>> scale(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), quantile=0.75).tolist()
        [[0.0, 2.7182817459106445, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]

    References:
        Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement", ICLR 2024.

    """
    _checked_features(features, method="SCALE")
    return _checked_shaped(features, SCALE(checked_fraction(quantile, name="quantile")))


def shaped_rows(features: Tensor, shaping: Shaping | None, *, threshold: float | None = None) -> Tensor:
    """Return the features after `shaping` as `shaped` does, without a look at the values: one graph says it all.

    Nothing is checked and nothing warned of. Features that overflow, and are refused there, become infinite or NaN.

    Args:
        features: Shape ``(batch, features)``.
        shaping: What to apply, or None.
        threshold: The threshold of ReAct, in units of the features; needed by ReAct alone.

    Returns:
        Shaped features, shape of `features`; dtype of `features`, or float32 where half precision was scaled.

    Raises:
        OptionError: If ReAct has no threshold.

    Example:
        >>> import torch
        >>> shaped_rows(torch.tensor([[0.5, 3.0]]), ReAct(), threshold=1.0).tolist()
        [[0.5, 1.0]]

    """
    if isinstance(shaping, ReAct):  # no `match`: torch 2.6 does not trace it
        if threshold is None:
            raise OptionError("ReAct needs its `threshold`: the quantile of the training features, in their units.")
        return features.clamp_max(threshold)
    if isinstance(shaping, ASHS | SCALE):
        entries = features.shape[1]
        largest = features.topk(max(1, entries - round(shaping.quantile * entries)), dim=1).values
        if isinstance(shaping, SCALE):
            return features * _growth(features, largest)
        kept = torch.where(features >= largest[:, -1:], features, torch.zeros_like(features))
        return kept * _growth(features, kept)
    return features


def _growth(features: Tensor, kept: Tensor) -> Tensor:
    """Return exp(s1 / s2) of each row, shape ``(batch, 1)``; 1 where s2 is not positive, NaN where a sum overflows."""
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    whole, part = features.sum(1, keepdim=True, dtype=wide), kept.sum(1, keepdim=True, dtype=wide)
    is_positive = part > 0
    exponent = torch.where(is_positive, whole / torch.where(is_positive, part, 1.0), 0.0)
    is_held = torch.isfinite(whole) & torch.isfinite(part)
    return torch.where(is_held, exponent.clamp_max(_LARGEST_EXPONENT).exp(), torch.nan)


def _checked_shaped(features: Tensor, shaping: ASHS | SCALE) -> Tensor:
    """Return the shaped features, refusing overflow; in half precision, at most the largest number of their dtype."""
    grown = shaped_rows(features, shaping)
    if not bool(grown.isfinite().all()):
        what = "the sum of a row" if bool(grown.isnan().any()) else "a shaped feature"
        raise NonFiniteError(_TOO_LARGE.format(what=what, dtype=grown.dtype))
    largest = torch.finfo(features.dtype).max
    return grown.clamp(-largest, largest).to(features.dtype)


def _checked_features(features: Tensor, *, method: str) -> None:
    checked_matrix(features, name="features", axes="(batch, features)")
    if bool((features < 0).any()):
        warnings.warn(
            f"{method} assumes features that are not negative (after a ReLU), but some are. Its scores may order "
            f"inputs badly here; shaping=None has no such assumption.",
            SignedFeaturesWarning,
            stacklevel=3,
        )

r"""The fusion: scores of different mechanism, each in units of its own tail, merged into one.

From scores of training samples that were kept out of every sum a member k takes its median q50 and 95 % quantile q95:

    z_k = (s_k - q50_k) / (q95_k - q50_k)          tail units: 0 = typical, 1 = at the 95 % quantile
    S   = log sum over k of exp z_k                the fused score
    share of k = exp(z_k - S)                      what it contributed

With exponential tails exp z is a power of 1 / p, so that S is a generalised mean of p-values (Vovk and Wang, Biometrika
2020) whose merging factor the conformal calibration of S takes care of, however the members depend on each other.
"""

import torch
from torch import Tensor

from opnp.errors import ShapeError

__all__ = ["finite_or_infinite", "fused_score", "member_shares", "tail_reason", "tail_scales", "tail_units"]

_LEAST_SPREAD = 1e-6
_LARGEST_LOST = 0.01


def tail_scales(scores: Tensor) -> Tensor:
    """Return median and 95 % quantile of each member's scores, shape ``(2, members)``, float64.

    Args:
        scores: Scores of ID samples, shape ``(samples, members)``; what is not finite counts as +inf.

    Raises:
        ShapeError: If there is no sample.

    Example:
        >>> import torch
        >>> tail_scales(torch.arange(101.0)[:, None]).tolist()
        [[50.0], [95.0]]

    """
    if scores.ndim != 2 or len(scores) == 0:
        raise ShapeError(f"`scores` must have shape (samples, members) with a sample, got {tuple(scores.shape)}.")
    levels = torch.tensor([0.5, 0.95], dtype=torch.float64, device=scores.device)
    found = torch.quantile(finite_or_infinite(scores.double()), levels, dim=0)
    return torch.where(found.isnan(), torch.inf, found)  # between two infinities


def tail_reason(scores: Tensor, scales: Tensor) -> str | None:
    """Return why a member cannot be measured by these scores of its own, in words, or None if it can.

    Args:
        scores: Scores of ID samples, shape ``(samples,)``.
        scales: Their median and 95 % quantile, shape ``(2,)``.

    Example:
        >>> import torch
        >>> ties = torch.ones(50)
        >>> tail_reason(ties, tail_scales(ties[:, None])[:, 0])
        'its scores of training samples are nearly all equal'

    """
    lost = int((~torch.isfinite(scores)).sum())
    if lost > _LARGEST_LOST * len(scores):
        return f"{lost} of {len(scores)} of its scores of training samples are not finite"
    median, tail = scales.tolist()
    if not tail - median > _LEAST_SPREAD * max(abs(median), abs(tail)):
        return "its scores of training samples are nearly all equal"
    return None


def tail_units(scores: Tensor, scales: Tensor) -> Tensor:
    """Return scores in units of their tails: (s - q50) / (q95 - q50), and +inf where a score is not finite.

    Args:
        scores: Shape ``(batch, members)``.
        scales: Median and 95 % quantile of each member, shape ``(2, members)``.

    Returns:
        Shape ``(batch, members)``, dtype of `scales`.

    Example:
        >>> import torch
        >>> tail_units(torch.tensor([[50.0], [95.0], [torch.nan]]), torch.tensor([[50.0], [95.0]])).tolist()
        [[0.0], [1.0], [inf]]

    """
    return (finite_or_infinite(scores.to(scales.dtype)) - scales[0]) / (scales[1] - scales[0])


def fused_score(units: Tensor) -> Tensor:
    """Return S = log sum exp z over the members, shape ``(batch,)``; +inf where any of them is.

    Args:
        units: Scores in tail units, shape ``(batch, members)``, not NaN.

    Example:
        >>> import torch
        >>> fused_score(torch.tensor([[0.0, 0.0], [1.0, torch.inf]])).tolist()
        [0.6931471824645996, inf]

    References:
        Vovk and Wang, "Combining p-values via averaging", Biometrika 2020.

    """
    largest = units.amax(1, keepdim=True)
    finite = torch.where(torch.isfinite(largest), largest, 0.0)
    return (units - finite).exp().sum(1).log() + finite[:, 0]


def member_shares(units: Tensor) -> Tensor:
    """Return the share exp(z_k - S) of each member in the fused score, shape of `units`; the rows sum to 1.

    Where members are infinite they share alike, and the others have nothing.

    Args:
        units: Scores in tail units, shape ``(batch, members)``, not NaN.

    Example:
        >>> import torch
        >>> member_shares(torch.tensor([[0.0, 0.0], [1.0, torch.inf]])).tolist()
        [[0.5, 0.5], [0.0, 1.0]]

    """
    is_infinite = units.isposinf()
    has_any = is_infinite.any(1, keepdim=True)
    finite = torch.where(has_any, torch.where(is_infinite, 0.0, -torch.inf), units)
    return torch.softmax(finite, dim=1)


def finite_or_infinite(scores: Tensor) -> Tensor:
    """Return scores, those that are not finite as +inf."""
    return torch.where(torch.isfinite(scores), scores, torch.inf)

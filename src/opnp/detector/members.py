"""The fusion, fitted: what its members need from the sums of a pass, and their scales from rows kept out of them."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch documents it, and does not export it

from opnp.core.fusion import tail_reason, tail_scales
from opnp.core.members import REACT_QUANTILE, ClassGaussian, Panel, PrincipalSpace, member_scores
from opnp.core.moments import FeatureMoments
from opnp.core.sensitivity import Sensitivity, product_dtype
from opnp.errors import EmptyDataError, MemberWarning, OpnpError
from opnp.fitted import FittedState, Settings, product

__all__ = ["fitted_fusion"]

_OF_GAUSSIANS = ("mahalanobis", "relative_mahalanobis")
_LEAST_NORM_SPREAD = 0.01
"""The unit of the norm guard, at least. Behind a layer norm the norms of features differ by a thousandth or not at all:
in units of that the rounding of float32 would show, and without the guard features that are scaled would not."""


def fitted_fusion(
    moments: FeatureMoments,
    kept: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None,
    sensitivity: Sensitivity,
    react_threshold: float,
    settings: Settings,
) -> FittedState:
    """Return the fusion that the sums of a pass and the rows kept out of them give.

    A member is left out and named, with a warning, if what it needs cannot be had, if its scores of the kept rows are
    nearly all equal, or if more than 1 % of them are not finite. The norm guard beside others may be constant.

    Args:
        moments: Sums over the training features.
        kept: Training features that are not in them, shape ``(rows, features)``, float64.
        weight: Weight of the head, shape ``(classes, features)``.
        bias: Bias of the head, or None.
        sensitivity: Sensitivities of the head over the same rows as `moments`.
        react_threshold: Threshold of ReAct in units of the features.
        settings: Those of a fusion.

    Raises:
        EmptyDataError: If no member is left.

    Warns:
        MemberWarning: If a member is left out.

    """
    asked = settings.members or ()
    if len(kept) == 0:
        raise EmptyDataError(f"A fusion needs at least two training samples, got {sensitivity.count}.")
    state = FittedState(
        settings=settings,
        weight=weight,
        bias=bias,
        sensitivity=sensitivity,
        react_thresholds={REACT_QUANTILE: react_threshold},
    )
    head = weight.detach().double().contiguous(), None if bias is None else bias.detach().double()  # as in a file
    panel, left_out = _panel(moments, kept, *head, asked=asked)
    panel = replace(
        panel, pruned_weight=state.pruned.weight.detach().double().contiguous(), react_threshold=react_threshold
    )
    members = [name for name in asked if name not in left_out]
    dtype = product_dtype(
        weight, precision=settings.precision
    )  # that of the scores to come: what overflows there shows
    measured = panel.mapped(lambda tensor: tensor.to(dtype)).with_boundaries()
    with torch.autocast(kept.device.type, enabled=False):  # the caller's would take half precision
        scores = member_scores(kept.to(dtype), measured, members).double() if members else kept[:, :0]
    scales = tail_scales(scores) if members else kept[:2, :0]
    reasons = [tail_reason(scores[:, place], scales[:, place]) for place in range(len(members))]
    if "norm" in members:
        guard = members.index("norm")
        scales[1, guard] = torch.maximum(scales[1, guard], scales[0, guard] + _LEAST_NORM_SPREAD)
        if any(reason is None for reason in reasons):
            reasons[guard] = tail_reason(scores[:, guard], scales[:, guard])
    left_out |= {name: reason for name, reason in zip(members, reasons, strict=True) if reason is not None}
    fused = tuple(name for name in members if name not in left_out)
    left_out = {name: left_out[name] for name in asked if name in left_out}
    if not fused:
        raise EmptyDataError(
            f"No score can be fused after {sensitivity.count + len(kept)} training samples: {_listed(left_out)}. Where "
            f"they are few or much alike, give more; or give `ratios` for the pruned head alone."
        )
    if left_out:
        warnings.warn(f"The fusion goes without {_listed(left_out)}.", MemberWarning, stacklevel=6)  # who called `fit`
    return state.restated(
        panel=panel,
        scales=scales[:, [place for place, reason in enumerate(reasons) if reason is None]],
        fused=fused,
        left_out=left_out,
        kept=len(kept),
    )


def _panel(
    moments: FeatureMoments, kept: Tensor, weight: Tensor, bias: Tensor | None, *, asked: tuple[str, ...]
) -> tuple[Panel, dict[str, str]]:
    """Return what the members need, of the whole head, and why members cannot be had, by name."""
    left_out: dict[str, str] = {}
    typical = float(torch.linalg.vector_norm(kept, dim=1).median())
    if typical == 0.0:
        left_out["norm"] = "at least half of the training features are zero"
    gaussian = space = None
    try:
        if any(name in asked for name in _OF_GAUSSIANS):
            gaussian = ClassGaussian.from_moments(moments, is_relative="relative_mahalanobis" in asked)
    except (OpnpError, LinAlgError) as error:
        left_out |= dict.fromkeys(_OF_GAUSSIANS, _reason(error))
    try:
        if "vim" in asked:
            logits = product(kept, weight, bias)
            space = PrincipalSpace.from_moments(moments, weight=weight, bias=bias, features=kept, logits=logits)
    except (OpnpError, LinAlgError) as error:
        left_out["vim"] = _reason(error)
    panel = Panel(
        weight=weight,
        bias=bias,
        pruned_weight=weight,
        mean=moments.feature / moments.count,
        react_threshold=math.inf,
        typical_norm=typical,
        gaussian=gaussian,
        space=space,
    )
    return panel, left_out


def _listed(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in left_out.items())


def _reason(error: Exception) -> str:
    """Return what was wrong, for the middle of a sentence."""
    return "its matrix cannot be decomposed" if isinstance(error, LinAlgError) else str(error).rstrip(".")

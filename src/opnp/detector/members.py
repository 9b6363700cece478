"""The fusion, fitted: what its members need from the sums of a pass, and their scales from rows kept out of them."""

import warnings

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch documents it, and does not export it

from opnp.core.fusion import tail_reason, tail_scales
from opnp.core.members import REACT_QUANTILE, ClassGaussian, Panel, PrincipalSpace, member_scores
from opnp.core.moments import FeatureMoments
from opnp.core.sensitivity import product, product_dtype
from opnp.errors import EmptyDataError, MemberWarning, OpnpError
from opnp.fitted import FittedState

__all__ = ["fitted_fusion"]

_OF_GAUSSIANS = ("mahalanobis", "relative_mahalanobis")
_LEAST_NORM_SPREAD = 0.01
"""The unit of the norm guard, at least. Behind a layer norm the norms of features differ by a thousandth or not at all:
in units of that the rounding of float32 would show, and without the guard features that are scaled would not."""


def fitted_fusion(state: FittedState, moments: FeatureMoments, kept: Tensor) -> FittedState:
    """Return the fusion that the sums of a pass and the rows kept out of them give.

    A member is left out and named, with a warning, if what it needs cannot be had, if its scores of the kept rows are
    nearly all equal, or if more than 1 % of them are not finite. The norm guard beside others may be constant.

    Args:
        state: What the sums give of the head: the settings of a fusion, sensitivities and the threshold of ReAct.
        moments: Sums over the training features.
        kept: Training features that are not in them, shape ``(rows, features)``, float64.

    Raises:
        EmptyDataError: If no member is left.

    Warns:
        MemberWarning: If a member is left out.

    """
    asked = state.settings.members or ()
    if len(kept) == 0:
        raise EmptyDataError(f"A fusion needs at least two training samples, got {state.samples}.")
    panel, left_out = _panel(state, moments, kept, asked)
    members = [name for name in asked if name not in left_out]
    # In the dtype of the scores to come, so that what overflows there shows.
    dtype = product_dtype(state.weight, precision=state.settings.precision)
    measured = panel.mapped(lambda tensor: tensor.to(dtype)).with_boundaries()
    with torch.autocast(kept.device.type, enabled=False):  # the caller's would take half precision
        scores = member_scores(kept.to(dtype), measured, members).double() if members else kept[:, :0]
    scales = tail_scales(scores) if members else kept[:2, :0]
    reasons = [tail_reason(*columns) for columns in zip(scores.T, scales.T, strict=True)]
    if "norm" in members:
        guard = members.index("norm")
        scales[1, guard] = torch.maximum(scales[1, guard], scales[0, guard] + _LEAST_NORM_SPREAD)
        if None in reasons:
            reasons[guard] = tail_reason(scores[:, guard], scales[:, guard])
    left_out |= {name: reason for name, reason in zip(members, reasons, strict=True) if reason is not None}
    left_out = {name: left_out[name] for name in asked if name in left_out}
    fused = tuple(name for name in asked if name not in left_out)
    told = "; ".join(f"{name} ({reason})" for name, reason in left_out.items())
    if not fused:
        raise EmptyDataError(
            f"No score can be fused after {state.samples + len(kept)} training samples: {told}. Where they are few or "
            f"much alike, give more; or give `ratios` for the pruned head alone."
        )
    if left_out:
        warnings.warn(f"The fusion goes without {told}.", MemberWarning, stacklevel=5)  # who called `fit`
    scales = scales[:, [members.index(name) for name in fused]]
    return state.restated(panel=panel, scales=scales, fused=fused, left_out=left_out, kept=len(kept))


def _panel(
    state: FittedState, moments: FeatureMoments, kept: Tensor, asked: tuple[str, ...]
) -> tuple[Panel, dict[str, str]]:
    """Return what the members need, float64 and contiguous as in a file, and why members cannot be had, by name."""
    weight, pruned = (each.detach().double().contiguous() for each in (state.weight, state.pruned.weight))
    bias = None if state.bias is None else state.bias.detach().double()
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
        pruned_weight=pruned,
        mean=moments.feature / moments.count,
        react_threshold=state.react_thresholds[REACT_QUANTILE],
        typical_norm=typical,
        gaussian=gaussian,
        space=space,
    )
    return panel, left_out


def _reason(error: Exception) -> str:
    """Return what was wrong, for the middle of a sentence."""
    return "its matrix cannot be decomposed" if isinstance(error, LinAlgError) else str(error).rstrip(".")

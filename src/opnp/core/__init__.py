"""Pure tensor arithmetic: the method, equation by equation. No models, no files, no state.

- `sensitivity`: mean absolute gradients of the energy, in closed form (step 1)
- `masks`: which weights and neurons stay (step 2)
- `layers`: the same two for any layer, from the gradients that a backward pass brings
- `scores`: how much an input looks out of distribution, from logits (step 3)
- `shaping`: ReAct, ASH-S and SCALE on features, before the head
- `conformal`: p-values and verdicts with a guarantee
- `metrics`: what a detector and a classifier are worth
- `moments`: sums over training features that the members of the fusion follow from
- `members`: which scores the fusion is made of, and the formula of each
- `fusion`: scores in units of their tails, and the one score that they make
- `kept_rows`: a sample of a stream that does not depend on its order
- `histogram`: quantiles of a stream
"""

from opnp.core.conformal import (
    at_least_count,
    conformal_p_value,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
)
from opnp.core.fusion import fused_score, member_shares, tail_scales, tail_units
from opnp.core.histogram import ValueHistogram
from opnp.core.layers import LayerSensitivitySum, layer_masks
from opnp.core.masks import Masks, Scope, keep_mask, neuron_mask, pruned_count, pruned_weight, weight_mask
from opnp.core.members import (
    MEMBERS,
    PANEL,
    ClassGaussian,
    Panel,
    PrincipalSpace,
    fdbd_score,
    mahalanobis_score,
    member_scores,
    nci_score,
    norm_score,
    relative_mahalanobis_score,
    vim_score,
)
from opnp.core.metrics import (
    DetectionMetrics,
    PositiveClass,
    Reliability,
    accuracy,
    aupr,
    auroc,
    detection_metrics,
    expected_calibration_error,
    fpr_at_tpr,
    reliability,
)
from opnp.core.moments import FeatureMoments
from opnp.core.scores import (
    SCORE_NAMES,
    ScoreName,
    energy_score,
    entropy_score,
    gen_score,
    max_logit_score,
    msp_score,
    score_logits,
)
from opnp.core.sensitivity import (
    NeuronReading,
    Precision,
    Sensitivity,
    SensitivitySum,
    neuron_sensitivity,
    weight_sensitivity,
)
from opnp.core.shaping import ASHS, SCALE, ReAct, Shaping, ash_s, react, scale, shaped

__all__ = [
    "ASHS",
    "MEMBERS",
    "PANEL",
    "SCALE",
    "SCORE_NAMES",
    "ClassGaussian",
    "DetectionMetrics",
    "FeatureMoments",
    "LayerSensitivitySum",
    "Masks",
    "NeuronReading",
    "Panel",
    "PositiveClass",
    "Precision",
    "PrincipalSpace",
    "ReAct",
    "Reliability",
    "Scope",
    "ScoreName",
    "Sensitivity",
    "SensitivitySum",
    "Shaping",
    "ValueHistogram",
    "accuracy",
    "ash_s",
    "at_least_count",
    "aupr",
    "auroc",
    "conformal_p_value",
    "detection_metrics",
    "energy_score",
    "entropy_score",
    "expected_calibration_error",
    "fdbd_score",
    "flagged_rank",
    "fpr_at_tpr",
    "fused_score",
    "gen_score",
    "is_flagged",
    "keep_mask",
    "keep_threshold",
    "layer_masks",
    "mahalanobis_score",
    "max_logit_score",
    "member_scores",
    "member_shares",
    "minimum_samples",
    "msp_score",
    "nci_score",
    "neuron_mask",
    "neuron_sensitivity",
    "norm_score",
    "pruned_count",
    "pruned_weight",
    "react",
    "relative_mahalanobis_score",
    "reliability",
    "scale",
    "score_logits",
    "shaped",
    "tail_scales",
    "tail_units",
    "vim_score",
    "weight_mask",
    "weight_sensitivity",
]

"""Pure tensor arithmetic: the method, equation by equation. No models, no files, no state.

- `sensitivity`: mean absolute gradients of the energy, in closed form (step 1)
- `masks`: which weights and neurons stay (step 2)
- `layer_sensitivity`, `layer_masks`: the same for any layer, from the gradients that a backward pass brings
- `position_products`: what those are made of, in chunks
- `scores`: how much an input looks out of distribution, from logits (step 3)
- `shaping`: ReAct, ASH-S and SCALE on features, before the head
- `conformal`: p-values and verdicts with a guarantee
- `failure`: whether a score is higher where the classifier is wrong
- `metrics`: what a detector and a classifier are worth
- `detection`: all figures of detection at once
- `row_blocks`: a stream cut anew into blocks of rows
- `histogram`: quantiles of a stream
- `holdout`: how well a setting detects classes that the head does not know
"""

from opnp.core.conformal import (
    at_least_count,
    conformal_p_value,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
)
from opnp.core.detection import DetectionMetrics, detection_metrics
from opnp.core.failure import failure_auroc
from opnp.core.histogram import ValueHistogram
from opnp.core.holdout import class_draws, holdout_auroc
from opnp.core.layer_masks import layer_masks
from opnp.core.layer_sensitivity import Geometry, LayerSensitivitySum, energy_gradient
from opnp.core.masks import Masks, Scope, keep_mask, neuron_mask, pruned_count, pruned_weight, weight_mask
from opnp.core.metrics import (
    PositiveClass,
    Reliability,
    accuracy,
    aupr,
    auroc,
    expected_calibration_error,
    fpr_at_tpr,
    reliability,
)
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
    "SCALE",
    "SCORE_NAMES",
    "DetectionMetrics",
    "Geometry",
    "LayerSensitivitySum",
    "Masks",
    "NeuronReading",
    "PositiveClass",
    "Precision",
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
    "class_draws",
    "conformal_p_value",
    "detection_metrics",
    "energy_gradient",
    "energy_score",
    "entropy_score",
    "expected_calibration_error",
    "failure_auroc",
    "flagged_rank",
    "fpr_at_tpr",
    "gen_score",
    "holdout_auroc",
    "is_flagged",
    "keep_mask",
    "keep_threshold",
    "layer_masks",
    "max_logit_score",
    "minimum_samples",
    "msp_score",
    "neuron_mask",
    "neuron_sensitivity",
    "pruned_count",
    "pruned_weight",
    "react",
    "reliability",
    "scale",
    "score_logits",
    "shaped",
    "weight_mask",
    "weight_sensitivity",
]

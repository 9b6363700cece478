"""From given settings to settings with nothing left automatic: by tuning, or by a stated fallback."""

import warnings

from torch import Tensor

from opnp.core.shaping import ReAct
from opnp.detector.criterion import Judge
from opnp.detector.fitting import Fitted
from opnp.detector.reservoir import Reservoir
from opnp.detector.settings import Settings
from opnp.detector.tuning import REACT_QUANTILES, Tuning, tuned
from opnp.errors import EmptyDataError, TuningWarning

__all__ = ["TUNING_SAMPLES", "TUNING_SEED", "chosen", "react_quantiles", "tuning_reservoir"]

TUNING_SAMPLES = 5000
"""Samples that settings are judged by, at most; more would cost time and change little."""

TUNING_SEED = 0
"""Seed of the samples, and of the draws they are judged by."""

_FEWEST_SAMPLES = 100


def react_quantiles(settings: Settings) -> tuple[float, ...]:
    """Return the quantiles of the training features that these settings may need as thresholds of ReAct."""
    if isinstance(settings.shaping, ReAct):
        return (settings.shaping.quantile,)
    return REACT_QUANTILES if settings.is_automatic and settings.shaping == "auto" else ()


def tuning_reservoir(*, rank: int = 0) -> Reservoir:
    """Return an empty reservoir for the samples to judge by; of ranks whose place in the data is unknown, one each."""
    return Reservoir(size=TUNING_SAMPLES, seed=TUNING_SEED + rank)


def chosen(
    fitted: Fitted, settings: Settings, reservoir: Reservoir, *, is_held_out: bool, ood: Tensor | None
) -> tuple[Settings, Tuning | None]:
    """Return settings with nothing left automatic, and how they were chosen.

    Args:
        fitted: Sensitivities, head and thresholds.
        settings: What was given, with automatic ratios.
        reservoir: The ID samples to judge by.
        is_held_out: Whether they were kept out of training.
        ood: Features of OOD validation samples, or None.

    Returns:
        The settings, and the tuning; no pruning, no shaping and None where there was too little to judge by.

    Warns:
        TuningWarning: If the samples were trained on, or too few to judge by.

    """
    features, labels = reservoir.sample()
    if len(features) < _FEWEST_SAMPLES:
        return _fallback(settings, f"automatic ratios need at least {_FEWEST_SAMPLES} ID samples, got {len(features)}")
    try:
        judge = Judge.from_samples(features, labels, fitted, settings, ood=ood, seed=TUNING_SEED)
    except EmptyDataError as error:
        return _fallback(settings, str(error))
    if not is_held_out:
        warnings.warn(
            "automatic ratios were chosen on the training data, where a classifier is surer than it will be: the "
            "choice is weaker than on held-out ID samples. Give them as `validation`.",
            TuningWarning,
            stacklevel=4,
        )
    source = "validation" if is_held_out else "training"
    tuning = tuned(fitted, settings, judge, source=source, is_labelled=labels is not None)
    return tuning.chosen.settings, tuning


def _fallback(settings: Settings, reason: str) -> tuple[Settings, None]:
    warnings.warn(f"{reason.rstrip('.')}. Nothing is pruned, and no shaping is chosen.", TuningWarning, stacklevel=5)
    return settings.resolved(), None

"""What there is to say of a fitted detector."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opnp.detector import OPNP

__all__ = ["summary"]


def summary(detector: "OPNP") -> dict[str, object]:
    """Return what there is to say of a fitted detector, as JSON values."""
    classes, features = detector.masks.weight.shape
    facts: dict[str, object] = {
        "training_samples": detector.sensitivity.count,
        "classes": classes,
        "features": features,
        "settings": detector.settings.to_json(),
        "pruned_weights": int((~detector.masks.weight).sum()),
        "pruned_neurons": int((~detector.masks.neuron).sum()),
        "kept_share": float(detector.masks.kept.double().mean()),
        "calibration_samples": 0,
    }
    if detector.tuning is not None:
        tuning = detector.tuning
        facts |= {
            "chosen_on": f"{tuning.samples} {tuning.source} samples, {tuning.tried} settings tried",
            "holdout_auroc": tuning.chosen.mean_holdout,
            "holdout_auroc_energy": tuning.energy.mean_holdout,
        }
    if detector.is_calibrated:
        facts |= {
            "calibration_samples": len(detector.calibration_scores),
            "keep": detector.keep,
            "threshold": detector.threshold,
        }
    return facts

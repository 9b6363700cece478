"""What there is to say of a fitted detector."""

import math
from typing import TYPE_CHECKING

from opnp.cli.output import settings_text

if TYPE_CHECKING:
    from opnp.detector import OPNP

__all__ = ["summary", "summary_texts"]


def summary(detector: "OPNP") -> dict[str, object]:
    """Return what there is to say of a fitted detector, as JSON values; a threshold that nothing exceeds is "inf"."""
    classes, features = detector.masks.weight.shape
    facts: dict[str, object] = {
        "training_samples": detector.samples,
        "classes": classes,
        "features": features,
        "settings": detector.settings.to_json(),
        "pruned_weights": int((~detector.masks.weight).sum()),
        "pruned_neurons": int((~detector.masks.neuron).sum()),
        "kept_share": float(detector.masks.kept.double().mean()),
        "calibration_samples": 0,
    }
    if detector.settings.is_fusion:
        facts |= {"members": list(detector.members), "left_out": dict(detector.left_out)}
    if detector.tuning is not None:
        facts["tuned"] = detector.tuning.to_json() | {"gain": detector.tuning.gain}
    if detector.is_calibrated:
        facts |= {
            "calibration_samples": len(detector.calibration_scores),
            "keep": detector.keep,
            "threshold": detector.threshold if math.isfinite(detector.threshold) else str(detector.threshold),
        }
    return facts


def summary_texts(detector: "OPNP") -> dict[str, str]:
    """Return the facts of `summary` that read better as text, by name."""
    texts = {"settings": settings_text(detector.settings)}
    if detector.settings.is_fusion:
        texts["members"] = ", ".join(detector.members)
        texts["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in detector.left_out.items()) or "none"
    if (tuning := detector.tuning) is not None:
        texts["tuned"] = (
            f"{tuning.tried} settings tried; on samples not searched AUROC {100 * tuning.auroc:.2f}, plain energy "
            f"{100 * tuning.energy_auroc:.2f}, gain {100 * tuning.gain:+.2f}"
        )
    return texts

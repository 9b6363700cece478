"""A folder of results of one fitted detector, for its report."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from opnp.bench.fit_record import FIT_FILE, FitRecord, TuningFacts
from opnp.bench.picture_record import PICTURES_FILE, PictureRecord
from opnp.bench.pictures import detector_pictures
from opnp.bench.result_folder import require_own_results
from opnp.core import flagged_rank
from opnp.detector import OPNP, Tuning
from opnp.errors import NonFiniteError
from opnp.files import write_atomically

__all__ = ["record_fit"]


def record_fit(detector: OPNP, folder: str | os.PathLike[str], *, model: str, settings_text: str) -> FitRecord:
    """Write ``fit.json`` and ``pictures.json`` of a fitted detector to a folder, and return the record of the fit.

    Args:
        detector: The detector.
        folder: Where to write; it exists.
        model: What the detector is called in the report.
        settings_text: Its settings in words.

    Raises:
        DataFileError: If the folder holds one of these names and no record of opnp.
        NonFiniteError: If a calibration score is infinite.

    """
    require_own_results(folder, files=(FIT_FILE, PICTURES_FILE))
    folder, scores = Path(folder), detector.calibration_scores if detector.is_calibrated else None
    if scores is not None and (infinite := int((~scores.isfinite()).sum())):
        raise NonFiniteError(
            f"{infinite} of {len(scores)} calibration scores are infinite: their features are too large to be scored, "
            f"and no figure can be drawn of them. Calibrate without these samples."
        )
    weight = detector.original_head.weight
    classes, features = weight.shape
    record = FitRecord(
        model=model,
        classes=classes,
        features=features,
        training_samples=detector.samples,
        settings=detector.settings.to_json(),
        settings_text=settings_text,
        left_out=dict(detector.left_out),
        tuning=None if detector.tuning is None else _tuning(detector.tuning),
        keep=None if scores is None else detector.keep,
        threshold=None if scores is None else detector.threshold,
        expected_flagged=None if scores is None else _expected(len(scores), detector.keep),
        calibration_scores=() if scores is None else tuple(scores.tolist()),
        head_sha256=detector.head_digest,
        versions={"python": platform.python_version()} | {name: version(name) for name in ("opnp", "torch")},
    )
    pictures = PictureRecord(models=(detector_pictures(detector, weight, model=model, method="OPNP"),))
    write_atomically(folder / FIT_FILE, (record.to_json() + "\n").encode())
    write_atomically(folder / PICTURES_FILE, (pictures.to_json() + "\n").encode())
    return record


def _expected(samples: int, keep: float) -> float:
    return flagged_rank(samples, keep=keep) / (samples + 1)


def _tuning(tuning: Tuning) -> TuningFacts:
    return TuningFacts(
        tried=tuning.tried,
        searched=tuning.searched,
        unsearched=tuning.unsearched,
        auroc=tuning.auroc,
        energy_auroc=tuning.energy_auroc,
    )

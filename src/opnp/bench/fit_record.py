"""The record of one fit: plain values that become JSON and come back. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from opnp.bench.record_json import record_of, record_text
from opnp.files.typed_json import Share

__all__ = ["FIT_FILE", "FIT_RECORD_VERSION", "FitRecord", "TriedSetting", "TuningFacts"]

FIT_FILE = "fit.json"
FIT_RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class TriedSetting:
    """What a setting was worth where settings were chosen.

    Attributes:
        holdout: AUROC against held-out ID classes, or against OOD validation samples; mean over the draws.
        failure: AUROC of telling wrong answers from right ones.
        loss: ID accuracy that the pruned head by itself loses; answers come from the original head.

    """

    holdout: Share
    failure: Share
    loss: float


@dataclass(frozen=True, slots=True)
class TuningFacts:
    """How settings were chosen.

    Attributes:
        samples: ID samples that they were chosen on.
        source: ``validation`` or ``training``.
        tried: Number of settings tried.
        is_changed: Whether anything else than the plain energy was chosen.
        energy: What the plain energy was worth.
        chosen: What the chosen setting was worth.

    """

    samples: int
    source: str
    tried: int
    is_changed: bool
    energy: TriedSetting
    chosen: TriedSetting


@dataclass(frozen=True, slots=True)
class FitRecord:
    """One fitted detector.

    Attributes:
        model: What the detector is called: the model or the features it was fitted on.
        classes: Rows of the head.
        features: Columns of the head.
        training_samples: Samples that the sensitivities were taken from.
        settings: Every setting, as chosen where it was automatic.
        settings_text: The same in words.
        tuning: How they were chosen, or None where they were given.
        keep: Share of ID to keep, or None without calibration.
        threshold: Score above which an input is flagged, or None.
        expected_flagged: Share of known inputs that is flagged in expectation, or None.
        calibration_scores: Scores of the calibration samples, ascending; larger = more OOD.
        head_sha256: Digest of the head.
        versions: Versions of the packages.

    """

    model: str
    classes: int
    features: int
    training_samples: int
    settings: Mapping[str, object]
    settings_text: str
    tuning: TuningFacts | None
    keep: Share | None
    threshold: float | None
    expected_flagged: Share | None
    calibration_scores: tuple[float, ...]
    head_sha256: str
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """Return the record as JSON, keys sorted, numbers in full.

        Raises:
            ValueError: If a number is NaN or infinite.

        """
        return record_text(self, version=FIT_RECORD_VERSION)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            DataFileError: If it is none, or of another version.

        """
        return record_of(text, cls, version=FIT_RECORD_VERSION, title="a fit")

"""The record of one fit: plain values that become JSON and come back. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from opnp.bench.record_json import record_of, record_text
from opnp.files.typed_json import Share

__all__ = ["FIT_FILE", "FIT_RECORD_VERSION", "FitRecord", "TuningFacts"]

FIT_FILE = "fit.json"
FIT_RECORD_VERSION = 2


@dataclass(frozen=True, slots=True)
class TuningFacts:
    """How ratios were chosen on OOD validation data.

    Attributes:
        tried: Number of settings tried.
        searched: Numbers of ID and OOD samples that were searched on.
        unsearched: Numbers of ID and OOD samples that the gain was measured on.
        auroc: AUROC of the chosen setting on those.
        energy_auroc: AUROC of the plain energy on the same.

    """

    tried: int
    searched: tuple[int, int]
    unsearched: tuple[int, int]
    auroc: Share
    energy_auroc: Share


@dataclass(frozen=True, slots=True)
class FitRecord:
    """One fitted detector.

    Attributes:
        model: What the detector is called: the model or the features it was fitted on.
        classes: Rows of the head.
        features: Columns of the head.
        training_samples: Samples that it was fitted on.
        settings: Every setting.
        settings_text: The same in words.
        left_out: Why a score that was asked for is not fused, by name.
        tuning: How ratios were chosen on OOD validation data, or None where they were not.
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
    left_out: Mapping[str, str]
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

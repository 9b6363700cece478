"""The record of one fit."""

from collections.abc import Mapping
from typing import ClassVar

from opnp.values.reading import Record, Share, Value
from opnp.values.settings import CalibratedBy

__all__ = ["FitRecord", "TuningFigures"]


class TuningFigures(Value, frozen=True):
    """What a search over ratios on OOD validation data counted and measured.

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


class FitRecord(Record, frozen=True):
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
        threshold: Score above which an input is flagged, or None; None too where each class has its own.
        expected_flagged: Share of known inputs that is flagged in expectation, or None; None too where each class has
            its own.
        calibration_scores: Scores of the calibration samples, ascending; larger = more OOD.
        head_sha256: Digest of the head.
        versions: Versions of the packages.
        calibrated_by: What calibration samples are grouped by, or None where all are one group.

    """

    record_version: ClassVar[int] = 2
    subject: ClassVar[str] = "a fit"

    model: str
    classes: int
    features: int
    training_samples: int
    settings: Mapping[str, object]
    settings_text: str
    left_out: Mapping[str, str]
    tuning: TuningFigures | None
    keep: Share | None
    threshold: float | None
    expected_flagged: Share | None
    calibration_scores: tuple[float, ...]
    head_sha256: str
    versions: Mapping[str, str]
    calibrated_by: CalibratedBy | None = None

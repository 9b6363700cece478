"""Records of what was measured: plain values that become JSON and come back. Standard library only."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from opnp.bench.record_json import record_of
from opnp.files.typed_json import Share

__all__ = ["DEMO_MODEL", "RECORD_VERSION", "DetectionResult", "MethodResult", "Record"]

RECORD_VERSION = 1
DEMO_MODEL = "demo"
"""Name of the demo's model in files that name one."""


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """How well one OOD set is told from the ID test set. Fractions in [0, 1].

    Attributes:
        fpr95: False-positive rate at 95 % of ID kept (ID positive, as in the papers).
        fpr95_ood_positive: Share of ID flagged where 95 % of OOD is caught (OOD positive, as in OpenOOD).
        auroc: Area under the ROC curve.

    """

    fpr95: Share
    fpr95_ood_positive: Share
    auroc: Share


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One row of a table: a method on one model. Fractions in [0, 1].

    Attributes:
        method: Name of the row.
        settings: The detector's settings as JSON values.
        detection: Results by name of the OOD set.
        accuracy: ID accuracy of the product, which answers with the original head.
        pruned_accuracy: ID accuracy of the pruned head by itself.
        flagged_id: Share of held-out ID test inputs flagged as OOD.
        threshold: Score above which an input is flagged, in units of the score.

    """

    method: str
    settings: Mapping[str, object]
    detection: Mapping[str, DetectionResult]
    accuracy: Share
    pruned_accuracy: Share
    flagged_id: Share
    threshold: float


@dataclass(frozen=True, slots=True)
class Record:
    """A table with what is needed to make it again.

    Attributes:
        title: What was measured.
        seed: Seed of everything random.
        keep: Share of ID to keep that the detectors were calibrated for.
        counts: Samples by name of the data set.
        versions: Versions of the packages that the figures depend on.
        methods: The rows.

    """

    title: str
    seed: int
    keep: Share
    counts: Mapping[str, int]
    versions: Mapping[str, str]
    methods: tuple[MethodResult, ...]

    def to_json(self) -> str:
        """Return the record as JSON, keys sorted, numbers in full: equal records give equal text.

        Raises:
            ValueError: If a figure is NaN or infinite.

        """
        return json.dumps({"record_version": RECORD_VERSION, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            DataFileError: If it is none, or of another version.

        """
        return record_of(text, cls, version=RECORD_VERSION, title="a demo")

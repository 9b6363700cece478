"""The record of a benchmark: plain values that become JSON and come back. Standard library only, no times in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from opnp.bench.record_json import record_of, record_text
from opnp.files.typed_json import Share

__all__ = [
    "BENCH_RECORD_VERSION",
    "BenchRecord",
    "ClassifierFigures",
    "DataSource",
    "DetectionFigures",
    "MethodRow",
    "ModelResult",
]

BENCH_RECORD_VERSION = 1

Nearness = Literal["near", "far"]
Group = Literal["reference", "baseline", "combination", "product"]
Split = Literal["test", "rest"]
Status = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True)
class DetectionFigures:
    """How well OOD is told from ID. Fractions in [0, 1].

    Attributes:
        fpr95: Share of OOD kept where 95 % of ID is kept (ID positive, as in the papers).
        fpr95_ood_positive: Share of ID flagged where 95 % of OOD is caught (OOD positive, as in OpenOOD).
        auroc: Area under the ROC curve.
        aupr_id_positive: Average precision with ID as the positive class.
        aupr_ood_positive: Average precision with OOD as the positive class.

    """

    fpr95: Share
    fpr95_ood_positive: Share
    auroc: Share
    aupr_id_positive: Share
    aupr_ood_positive: Share


@dataclass(frozen=True, slots=True)
class ClassifierFigures:
    """How well logits classify ID samples, and how well their confidence is calibrated.

    Attributes:
        accuracy: Share of right answers, in [0, 1].
        ece: Expected calibration error over bins of equal width, in [0, 1].
        bin_count: Samples by bin of confidence.
        bin_confidence: Mean confidence by bin, 0 where it is empty.
        bin_accuracy: Share of right answers by bin, 0 where it is empty.

    """

    accuracy: Share
    ece: Share
    bin_count: tuple[int, ...]
    bin_confidence: tuple[Share, ...]
    bin_accuracy: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class DataSource:
    """One file of features.

    Attributes:
        samples: Rows.
        sha256: Digest of the file.

    """

    samples: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method on one model.

    Attributes:
        method: Name of the row, unique within a model.
        group: ``reference`` (opnp at fixed ratios), ``baseline`` (at a published setting), ``combination`` (a baseline
            on opnp's pruned head) or ``product`` (opnp as it is used, beside the energy on the same samples).
        source: Package that computed it.
        citation: Where the settings come from.
        settings: Hyper-parameters.
        split: ID samples that it was judged by: all of ``test``, or the ``rest`` that was not given to validation.
        status: ``ok``, or ``failed`` where there are no figures.
        reason: Why it failed; empty where it did not.
        notes: Warnings that fit or score issued.
        detection: Figures by OOD set.
        mean: Mean of the figures over all OOD sets.
        near: Mean over the near sets, or None if there are none.
        far: Mean over the far sets, or None if there are none.
        before: The original head's figures on these ID samples; None without labels.
        after: Those of the logits that the score was read off (shaped features, pruned head); None where the score is
            read off none, or without labels.

    """

    method: str
    group: Group
    source: str
    citation: str
    settings: Mapping[str, object]
    split: Split
    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    detection: Mapping[str, DetectionFigures] | None = None
    mean: DetectionFigures | None = None
    near: DetectionFigures | None = None
    far: DetectionFigures | None = None
    before: ClassifierFigures | None = None
    after: ClassifierFigures | None = None


@dataclass(frozen=True, slots=True)
class ModelResult:
    """Every method on one model.

    Attributes:
        model: Name of the model.
        classes: Rows of its head.
        features: Columns of its head.
        data: Files by name: ``head``, ``train``, ``test`` and ``ood_*``.
        nearness: ``near`` or ``far`` by name of the OOD set.
        id_samples: ID samples by split.
        validation_samples: ID samples given to the product rows for validation; they are no part of ``rest``.
        methods: The rows.

    """

    model: str
    classes: int
    features: int
    data: Mapping[str, DataSource]
    nearness: Mapping[str, Nearness]
    id_samples: Mapping[str, int]
    validation_samples: int
    methods: tuple[MethodRow, ...]

    def row(self, method: str) -> MethodRow:
        """Return the row of this name.

        Raises:
            KeyError: If there is none.

        """
        for row in self.methods:
            if row.method == method:
                return row
        raise KeyError(method)

    @property
    def best_single(self) -> MethodRow | None:
        """The published single score of largest mean AUROC, known with hindsight; None where none ran.

        Published single scores are the rows at published settings and at fixed ratios: no fusion, and no combination.
        """
        ran = [row for row in self.methods if row.group in ("reference", "baseline") and row.mean is not None]
        return max(ran, key=_mean_auroc, default=None)

    def regret(self, row: MethodRow) -> float | None:
        """Return the AUROC of `best_single` less that of a row, both means over the OOD sets; at least 0.

        Rows of the split ``rest`` are judged by a part of what the published scores are judged by.

        Args:
            row: A row of this model.

        Returns:
            A fraction in [0, 1]; None where the row failed, or there is nothing to compare it with.

        """
        best = self.best_single
        return None if best is None or row.mean is None else max(0.0, _mean_auroc(best) - _mean_auroc(row))

    @property
    def best_first(self) -> tuple[MethodRow, ...]:
        """The rows that ran, the largest mean AUROC first."""
        return tuple(sorted((row for row in self.methods if row.status == "ok"), key=_mean_auroc, reverse=True))


def _mean_auroc(row: MethodRow) -> float:
    return 0.0 if row.mean is None else row.mean.auroc


@dataclass(frozen=True, slots=True)
class BenchRecord:
    """A benchmark with what is needed to make it again.

    Attributes:
        seed: Seed of everything random: the split of ``test`` for the product rows, and foreign methods.
        calibration_bins: Bins of confidence that the calibration errors are taken over.
        versions: Versions of the packages that the figures depend on.
        models: Results by model.

    Example:
        >>> record = BenchRecord(seed=0, calibration_bins=15, versions={}, models=())
        >>> BenchRecord.from_json(record.to_json()) == record
        True

    """

    seed: int
    calibration_bins: int
    versions: Mapping[str, str]
    models: tuple[ModelResult, ...]

    def to_json(self) -> str:
        """Return the record as JSON, keys sorted, numbers in full: equal records give equal text.

        Raises:
            ValueError: If a figure is NaN or infinite.

        """
        return record_text(self, version=BENCH_RECORD_VERSION)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            DataFileError: If it is none, or of another version.

        """
        again = ": run the benchmark again"
        return record_of(text, cls, version=BENCH_RECORD_VERSION, title="a benchmark", again=again)

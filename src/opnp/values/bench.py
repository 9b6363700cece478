"""The record of a benchmark and that of the demo. No times in them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar, Literal, Self

from opnp.errors import DataFileError
from opnp.values.figures import ClassifierFigures, DetectionFigures, Nearness
from opnp.values.reading import Record, Share, Value, one_value

__all__ = [
    "DEMO_MODEL",
    "PRODUCT",
    "TUNED",
    "BenchRecord",
    "DataSource",
    "DemoInput",
    "DemoRecord",
    "DemoRow",
    "Group",
    "JudgedModel",
    "MethodRow",
    "ModelResult",
    "Outcome",
    "PublishedFigures",
    "Split",
    "Status",
    "regrets",
]

Group = Literal["reference", "baseline", "combination", "tuned", "product"]
Split = Literal["test", "rest"]
Status = Literal["ok", "failed"]

PRODUCT = "OPNP()"
"""Name of the row of the detector as it is used: the fusion."""

TUNED = ("OPNP gradient tuned", "OPNP aggregate tuned")
"""Names of the rows of the paper's method at ratios that OOD validation data choose, in both neuron readings."""

DEMO_MODEL = "demo"
"""Name of the demo's model in files that name one."""


class DataSource(Value, frozen=True):
    """One file of features.

    Attributes:
        samples: Rows.
        sha256: Digest of the file.

    """

    samples: int
    sha256: str


class Outcome(Value, frozen=True, kw_only=True):
    """What came of a method, or of a setting, on one model.

    Attributes:
        status: ``ok``, or ``failed`` where there are no figures.
        reason: Why it failed; empty where it did not.
        notes: Warnings that were issued.
        detection: Figures by OOD set.
        mean: Mean of the figures over all OOD sets.
        near: Mean over the near sets, or None if there are none.
        far: Mean over the far sets, or None if there are none.

    """

    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    detection: Mapping[str, DetectionFigures] | None = None
    mean: DetectionFigures | None = None
    near: DetectionFigures | None = None
    far: DetectionFigures | None = None


class MethodRow(Outcome, frozen=True):
    """A method on one model; further attributes are those of `Outcome`.

    Attributes:
        method: Name of the row, unique within a model.
        group: ``reference`` (opnp at fixed ratios), ``baseline`` (at a published setting), ``combination`` (a baseline
            on opnp's pruned head), ``tuned`` (opnp at ratios chosen on OOD validation data) or ``product`` (opnp as it
            is used, beside the energy on the same samples).
        source: Package that computed it.
        citation: Where the settings come from.
        settings: Hyper-parameters.
        split: ID samples that it was judged by: all of ``test``, or the ``rest`` that was not given to validation.
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
    before: ClassifierFigures | None = None
    after: ClassifierFigures | None = None


class PublishedFigures(Value, frozen=True, omit_defaults=True):
    """What others published of a method on a model and its OOD sets: means over the sets, ID positive.

    Attributes:
        method: The method, as its source calls it.
        source: Where the figures stand.
        fpr95: Share of OOD kept where 95 % of ID is kept; None where it was not published.
        auroc: Area under the ROC curve; None where it was not published.
        row: Name of the row of a benchmark that is to stand beside it; empty for none.

    """

    method: str
    source: str
    fpr95: Share | None = None
    auroc: Share | None = None
    row: str = ""


class JudgedModel(Value, frozen=True):
    """A model and the data that it is judged by.

    Attributes:
        model: Name of the model.
        classes: Rows of its head.
        features: Columns of its head.
        data: Files by name: ``head``, ``train``, ``test``, ``ood_*`` and perhaps ``validation_ood``.
        nearness: ``near`` or ``far`` by name of the OOD set.

    """

    model: str
    classes: int
    features: int
    data: Mapping[str, DataSource]
    nearness: Mapping[str, Nearness]

    def sets(self, nearness: Nearness) -> list[str]:
        """Return the names of the near, or of the far, OOD sets, in alphabetical order."""
        return sorted(name for name, value in self.nearness.items() if value == nearness)


class ModelResult(JudgedModel, frozen=True, omit_defaults=True):
    """Every method on one model; the first attributes are those of `JudgedModel`.

    Attributes:
        id_samples: ID samples by split.
        validation_samples: ID samples given to the product rows for validation; they are no part of ``rest``.
        methods: The rows.
        published: What others published of this model.

    """

    id_samples: Mapping[str, int]
    validation_samples: int
    methods: tuple[MethodRow, ...]
    published: tuple[PublishedFigures, ...] = ()

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
    def single_scores(self) -> tuple[MethodRow, ...]:
        """The published single scores that ran, at published settings or fixed ratios: no fusion, no combination."""
        return tuple(row for row in self.methods if row.group in ("reference", "baseline") and row.mean is not None)

    @property
    def best_single(self) -> MethodRow | None:
        """The published single score of largest mean AUROC, known with hindsight; None where none ran."""
        return max(self.single_scores, key=_mean_auroc, default=None)

    def ours(self, published: PublishedFigures) -> DetectionFigures | None:
        """Return the means of the row that stands beside published figures; None where it did not run."""
        return next((row.mean for row in self.methods if row.method == published.row), None)

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


def regrets(models: Sequence[ModelResult]) -> dict[str, dict[str, float]]:
    """Return the regret by model of each row that ran on every model, by name of the row, the smallest mean first.

    Args:
        models: Results; those without a published single score to compare with are left out.

    """
    judged = [model for model in models if model.best_single is not None]
    found: dict[str, dict[str, float]] = {}
    for model in judged:
        for row in model.methods:
            if (regret := model.regret(row)) is not None:
                found.setdefault(row.method, {})[model.model] = regret
    complete = {method: each for method, each in found.items() if len(each) == len(judged)}
    return dict(sorted(complete.items(), key=lambda item: (fmean(item[1].values()), item[0])))


class BenchRecord(Record, frozen=True, omit_defaults=True):
    """A benchmark with what is needed to make it again.

    Attributes:
        seed: Seed of everything random: the split of ``test`` for the product rows, and foreign methods.
        calibration_bins: Bins of confidence that the calibration errors are taken over.
        versions: Versions of the packages that the figures depend on.
        models: Results by model.
        remark: What whoever reads the figures must know of them; empty for nothing.

    Example:
        >>> record = BenchRecord(seed=0, calibration_bins=15, versions={}, models=())
        >>> BenchRecord.from_json(record.to_json()) == record
        True

    """

    record_version: ClassVar[int] = 1
    subject: ClassVar[str] = "a benchmark"
    remedy: ClassVar[str] = ": run the benchmark again"

    seed: int
    calibration_bins: int
    versions: Mapping[str, str]
    models: tuple[ModelResult, ...]
    remark: str = ""

    @classmethod
    def joined(cls, records: Sequence[Self]) -> Self:
        """Return the records of several runs as one, their models in the order of the records.

        Raises:
            DataFileError: If seeds or bins differ, or a model occurs twice.

        """
        models = tuple(model for record in records for model in record.models)
        names = [model.model for model in models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataFileError(f"Records of one folder must be of different models, got {twice!r} twice.")
        versions: dict[str, list[str]] = {}
        for record in records:
            for package, version in record.versions.items():
                found = versions.setdefault(package, [])
                found += [] if version in found else [version]
        return cls(
            seed=one_value([each.seed for each in records], what="seed"),
            calibration_bins=one_value([each.calibration_bins for each in records], what="bins"),
            versions={package: " and ".join(found) for package, found in versions.items()},
            models=models,
            remark=" ".join(dict.fromkeys(each.remark for each in records if each.remark)),
        )

    @property
    def regrets(self) -> dict[str, dict[str, float]]:
        """Regret by model of each row that ran on every model, by name of the row, the smallest mean first."""
        return regrets(self.models)


class DemoRow(Value, frozen=True):
    """A row of the demo's table. Fractions in [0, 1].

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
    detection: Mapping[str, DetectionFigures]
    accuracy: Share
    pruned_accuracy: Share
    flagged_id: Share
    threshold: float


class DemoInput(Value, frozen=True):
    """One input of the demo with its verdict and the reason: the input of a set with the median score.

    Attributes:
        set: Name of its set.
        index: Its place in the set.
        predicted_class: What the model answers.
        p_value: Its p-value.
        is_ood: Whether it is flagged.
        member: The score with the largest share of the fused one.
        share: That share.

    """

    set: str
    index: int
    predicted_class: int
    p_value: Share
    is_ood: bool
    member: str
    share: Share


class DemoRecord(Record, frozen=True):
    """The demo's table with what is needed to make it again.

    Attributes:
        title: What was measured.
        seed: Seed of everything random.
        keep: Share of ID to keep that the detectors were calibrated for.
        counts: Samples by name of the data set.
        versions: Versions of the packages that the figures depend on.
        methods: The rows.
        inputs: One input of each set that is judged by, as `OPNP()` sees it.

    """

    record_version: ClassVar[int] = 1
    subject: ClassVar[str] = "a demo"
    indent: ClassVar[int] = 2

    title: str
    seed: int
    keep: Share
    counts: Mapping[str, int]
    versions: Mapping[str, str]
    methods: tuple[DemoRow, ...]
    inputs: tuple[DemoInput, ...] = ()


def _mean_auroc(row: MethodRow) -> float:
    return 0.0 if row.mean is None else row.mean.auroc

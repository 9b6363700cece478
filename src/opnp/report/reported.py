"""One view of a benchmark and of the demo: models, and rows of methods with their figures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opnp.bench.bench_record import (
    BenchRecord,
    ClassifierFigures,
    DetectionFigures,
    Group,
    MethodRow,
    ModelResult,
    Nearness,
    Split,
    Status,
)
from opnp.bench.record import DetectionResult, MethodResult, Record

__all__ = ["DEMO_MODEL", "ReportedFigures", "ReportedModel", "ReportedRow", "models_of_bench", "models_of_demo"]

DEMO_MODEL = "demo"
"""Name of the demo's model, whose record has none."""

_CHOSEN = ("OPNP()", "OPNP(shaping=None)", "OPNP")
"""Rows of opnp as it is used, the first that ran first: of a benchmark, of one by version 0.1, and of the demo."""
_BASELINES = ("Energy", "Energy, rest of test", "Energy (pytorch-ood)")


@dataclass(frozen=True, slots=True)
class ReportedFigures:
    """How well OOD is told from ID. Fractions in [0, 1].

    Attributes:
        fpr95: Share of OOD kept where 95 % of ID is kept (ID positive, as in the papers).
        fpr95_ood_positive: Share of ID flagged where 95 % of OOD is caught (OOD positive, as in OpenOOD).
        auroc: Area under the ROC curve.
        aupr_id_positive: Average precision with ID as the positive class, or None where it was not taken.
        aupr_ood_positive: Average precision with OOD as the positive class, or None.

    """

    fpr95: float
    fpr95_ood_positive: float
    auroc: float
    aupr_id_positive: float | None = None
    aupr_ood_positive: float | None = None


@dataclass(frozen=True, slots=True)
class ReportedRow:
    """A method on one model.

    Attributes:
        method: Name of the row, unique within a model.
        group: ``reference``, ``baseline``, ``combination`` or ``product``.
        source: Package that computed it.
        citation: Where the settings come from; empty where the record does not say.
        settings: Hyper-parameters.
        split: ID samples that it was judged by: all of ``test``, or the ``rest`` that was not given to validation.
        status: ``ok``, or ``failed`` where there are no figures.
        reason: Why it failed; empty where it did not.
        notes: Warnings that fit or score issued.
        detection: Figures by OOD set; empty where it failed.
        mean: Mean of the figures over all OOD sets, or None where it failed.
        near: Mean over the near sets, or None if there are none.
        far: Mean over the far sets, or None if there are none.
        before: The original head's figures on the ID samples; None where the record has none.
        after: Those of the logits that the score was read off; None where the record has none.
        accuracy: ID accuracy of the answers, by the original head; None without labels.
        accuracy_after: ID accuracy of the logits that the score was read off; None without labels.
        flagged_id: Share of ID test samples flagged at the calibrated threshold; None where it was not calibrated.
        threshold: That threshold, in units of the score; None where it was not calibrated.

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
    detection: Mapping[str, ReportedFigures] | None = None
    mean: ReportedFigures | None = None
    near: ReportedFigures | None = None
    far: ReportedFigures | None = None
    before: ClassifierFigures | None = None
    after: ClassifierFigures | None = None
    accuracy: float | None = None
    accuracy_after: float | None = None
    flagged_id: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """Every method on one model.

    Attributes:
        name: Name of the model.
        title: What was measured, in words; empty where the record does not say.
        classes: Rows of its head, or None where the record does not say.
        features: Columns of its head, or None.
        rows: The methods, in the order of the record.
        nearness: ``near`` or ``far`` by name of the OOD set; names without ``ood_``.
        counts: Samples by name of the data set: ``train``, ``test``, ``ood_*`` and what else the record names.
        id_samples: ID samples by split, ``test`` and ``rest``.
        chosen: Name of the row of opnp as it is used, or None if there is none.
        baseline: Name of the row of the plain energy, judged by the same ID samples as the chosen one, or None.
        best_single: Name of the published single score of largest mean AUROC, or None where there is no such row.
        regrets: Its mean AUROC less that of a row, at least 0, by name of the row; empty where there is no such row.

    """

    name: str
    title: str
    classes: int | None
    features: int | None
    rows: tuple[ReportedRow, ...]
    nearness: Mapping[str, Nearness]
    counts: Mapping[str, int]
    id_samples: Mapping[str, int]
    chosen: str | None
    baseline: str | None
    best_single: str | None = None
    regrets: Mapping[str, float] = field(default_factory=dict)

    def row(self, method: str) -> ReportedRow:
        """Return the row of this name.

        Raises:
            KeyError: If there is none.

        """
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(method)

    def sets(self, nearness: Nearness) -> list[str]:
        """Return the names of the near, or of the far, OOD sets, in alphabetical order."""
        return sorted(name for name, value in self.nearness.items() if value == nearness)


def models_of_bench(record: BenchRecord) -> tuple[ReportedModel, ...]:
    """Return the models of a benchmark.

    Example:
        >>> models_of_bench(BenchRecord(seed=0, calibration_bins=15, versions={}, models=()))
        ()

    """
    return tuple(_bench_model(model) for model in record.models)


def models_of_demo(record: Record) -> tuple[ReportedModel, ...]:
    """Return the one model of the demo.

    Example:
        >>> figures = DetectionResult(fpr95=0.4, fpr95_ood_positive=0.5, auroc=0.9)
        >>> row = MethodResult("OPNP", {}, {"far": figures}, 1.0, 1.0, 0.05, -5.0)
        >>> [model] = models_of_demo(Record("digits", 0, 0.95, {"test": 253}, {}, (row,)))
        >>> model.chosen, model.row("OPNP").far.auroc
        ('OPNP', 0.9)

    """
    places = sorted({place for method in record.methods for place in method.detection})
    rows = tuple(_demo_row(method) for method in record.methods)
    chosen = _chosen(rows)
    return (
        ReportedModel(
            name=DEMO_MODEL,
            title=record.title,
            classes=None,
            features=None,
            rows=rows,
            nearness={place: "near" if place == "near" else "far" for place in places},
            counts=record.counts,
            id_samples={"test": record.counts.get("test", 0)},
            chosen=chosen,
            baseline=_baseline(rows, chosen),
        ),
    )


def _bench_model(model: ModelResult) -> ReportedModel:
    rows = tuple(_bench_row(row) for row in model.methods)
    chosen = _chosen(rows)
    return ReportedModel(
        name=model.model,
        title="",
        classes=model.classes,
        features=model.features,
        rows=rows,
        nearness=model.nearness,
        counts={name: source.samples for name, source in model.data.items() if name != "head"},
        id_samples=model.id_samples,
        chosen=chosen,
        baseline=_baseline(rows, chosen),
        best_single=None if model.best_single is None else model.best_single.method,
        regrets={row.method: regret for row in model.methods if (regret := model.regret(row)) is not None},
    )


def _bench_row(row: MethodRow) -> ReportedRow:
    detection = {name: _reported(figures) for name, figures in (row.detection or {}).items()}
    return ReportedRow(
        method=row.method,
        group=row.group,
        source=row.source,
        citation=row.citation,
        settings=row.settings,
        split=row.split,
        status=row.status,
        reason=row.reason,
        notes=row.notes,
        detection=detection,
        mean=None if row.mean is None else _reported(row.mean),
        near=None if row.near is None else _reported(row.near),
        far=None if row.far is None else _reported(row.far),
        before=row.before,
        after=row.after,
        accuracy=None if row.before is None else row.before.accuracy,
        accuracy_after=None if row.after is None else row.after.accuracy,
    )


def _demo_row(result: MethodResult) -> ReportedRow:
    detection = {place: _reported(figures) for place, figures in result.detection.items()}
    return ReportedRow(
        method=result.method,
        group="product" if result.method in _CHOSEN else "reference",
        source="opnp",
        citation="",
        settings=result.settings,
        split="test",
        status="ok",
        detection=detection,
        mean=_mean(detection.values()),
        near=_mean(figures for place, figures in detection.items() if place == "near"),
        far=_mean(figures for place, figures in detection.items() if place != "near"),
        accuracy=result.accuracy,
        accuracy_after=result.pruned_accuracy,
        flagged_id=result.flagged_id,
        threshold=result.threshold,
    )


def _reported(figures: DetectionFigures | DetectionResult) -> ReportedFigures:
    return ReportedFigures(
        fpr95=figures.fpr95,
        fpr95_ood_positive=figures.fpr95_ood_positive,
        auroc=figures.auroc,
        aupr_id_positive=figures.aupr_id_positive if isinstance(figures, DetectionFigures) else None,
        aupr_ood_positive=figures.aupr_ood_positive if isinstance(figures, DetectionFigures) else None,
    )


def _mean(figures: Iterable[ReportedFigures]) -> ReportedFigures | None:
    """Return the mean of figures that have no AUPR, or None of none."""
    given = list(figures)
    if not given:
        return None
    columns = zip(*((each.fpr95, each.fpr95_ood_positive, each.auroc) for each in given), strict=True)
    return ReportedFigures(*(sum(column) / len(given) for column in columns))


def _chosen(rows: Iterable[ReportedRow]) -> str | None:
    names = {row.method for row in rows if row.status == "ok"}
    return next((name for name in _CHOSEN if name in names), None)


def _baseline(rows: Iterable[ReportedRow], chosen: str | None) -> str | None:
    """Return the energy judged by the samples of the chosen row; by any samples where nothing was chosen."""
    ran = {row.method: row for row in rows if row.status == "ok"}
    splits = {row.split for row in ran.values()} if chosen is None else {ran[chosen].split}
    return next((name for name in _BASELINES if name in ran and ran[name].split in splits), None)

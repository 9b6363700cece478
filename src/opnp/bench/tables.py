"""Records as Markdown tables, near and far OOD apart: of a benchmark, and of a sweep; and as OpenOOD's leaderboard."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev

from msgspec.structs import asdict

from opnp.values.bench import BenchRecord, JudgedModel, MethodRow, ModelResult
from opnp.values.figures import DetectionFigures, Nearness
from opnp.values.sweep import SweepCurve, SweepPoint, SweepRecord, SweepSettings, SweptModel

__all__ = ["leaderboard_csv", "results_markdown", "sweep_markdown"]

_SIDES: tuple[Nearness, ...] = ("far", "near")
_GROUPS = {
    "reference": "opnp at fixed ratios",
    "baseline": "Baselines at published settings",
    "combination": "Baselines on opnp's pruned head",
    "tuned": "opnp at ratios tuned on OOD validation data",
    "product": "opnp as it is used",
}

_BENCH_PREFACE = (
    "All figures are in %. Detection is given as FPR95 / AUROC: FPR95 is the share of OOD kept where 95 % of ID is",
    "kept (ID positive, as in the papers), lower is better; AUROC is the same for both conventions, higher is better.",
    "The other convention of FPR95 and both AUPR stand in results.json, times and memory in timings.json.",
    "",
    "The settings of the baselines were fixed beforehand; which of them is best is known with hindsight only. What",
    "stands under `opnp as it is used` is fitted without OOD data. `OPNP()` is calibrated on part of the ID test",
    "samples: it, its members by themselves and the energy beside them are judged by the rest of those. So are rows",
    "whose ratios were tuned: on that part, and on OOD validation samples that are in no OOD set here.",
    "",
    "Regret of a method on a model is the AUROC of the best published single score among these rows, chosen with",
    "hindsight, less its own; at least 0. Both are means over all OOD sets.",
)

_SWEEP_PREFACE = (
    "All figures are in %. FPR95 is the share of OOD kept where 95 % of ID is kept (ID positive, as in the papers),",
    "lower is better; AUROC is the same for both conventions, higher is better; both are means over the far and over",
    "the near OOD sets. Accuracy and calibration error (ECE) are those of the pruned head by itself on the ID test",
    "samples; the answers come from the original head in any case. `removed` is the share of the head's entries that",
    "are set to zero. Where training samples are drawn several times: mean and standard deviation over the draws.",
    "Figures by set, the other FPR95 and both AUPR stand in sweep.json.",
    "",
    "The best of each column is in bold. Which setting is best is known here with hindsight only: the OOD sets that",
    "judge were seen. Settings are to be chosen by other data: `opnp tune` takes OOD validation samples for it. All of",
    "this is the paper's method, one pruned head: `OPNP()`, the fusion, takes nothing from it.",
)

_ENERGY = "Energy (original head)"
_LEADERBOARD = (
    "Training",
    "Postprocessor",
    "Near-OOD_AUROC",
    "Far-OOD_AUROC",
    "ID_Accuracy",
    "Outlier_Data",
    "Arch",
    "Additional_Description",
)
_UNKNOWN = "/"


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure of the points of a table.

    Attributes:
        title: Its heading.
        values: One value a row and draw, fractions; a row has several where training samples are drawn several times.
        is_small_better: Whether the best is the smallest; None where there is no best.

    """

    title: str
    values: tuple[tuple[float, ...], ...]
    is_small_better: bool | None = None

    def cells(self) -> list[str]:
        """Return the cells in percent, with the spread over draws, the best in bold."""
        means = [fmean(values) for values in self.values]
        texts = [f"{100 * mean:.2f}" for mean in means]
        if self.is_small_better is not None and len(set(texts)) > 1:
            best = f"{100 * (min(means) if self.is_small_better else max(means)):.2f}"
            marked = [f"**{text}**" if text == best else text for text in texts]
        else:
            marked = texts
        return [
            f"{text} ± {100 * stdev(values):.2f}" if len(values) > 1 else text
            for text, values in zip(marked, self.values, strict=True)
        ]


def results_markdown(record: BenchRecord) -> str:
    """Return the tables of a record as Markdown: figures in percent, the best of each column of a group in bold.

    Example:
        >>> record = BenchRecord(seed=3, calibration_bins=15, versions={"opnp": "0.1.0"}, models=())
        >>> results_markdown(record).splitlines()[0]
        '# Results'

    """
    versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()))
    lines = [
        "# Results",
        "",
        *_BENCH_PREFACE,
        "",
        f"Seed {record.seed}; {versions}.",
        *(["", f"**{record.remark}**"] if record.remark else []),
        *_regrets(record),
    ]
    for model in record.models:
        lines += _bench_model(model, bins=record.calibration_bins)
    return "\n".join(lines) + "\n"


def leaderboard_csv(record: BenchRecord) -> str:
    """Return the rows that ran as a CSV file in the columns of OpenOOD's leaderboards, one row a method and model.

    AUROC is the mean over the near, and over the far, OOD sets, and as there in percent with two digits; what is not
    known is ``/``. How a model was trained is not known here: fill `Training` in.

    Example:
        >>> record = BenchRecord(seed=0, calibration_bins=15, versions={"opnp": "0.2.0"}, models=())
        >>> leaderboard_csv(record).splitlines()[0]
        'Training,Postprocessor,Near-OOD_AUROC,Far-OOD_AUROC,ID_Accuracy,Outlier_Data,Arch,Additional_Description'

    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_LEADERBOARD)
    for model in record.models:
        sets = "; ".join(f"{side}: {', '.join(names)}" for side in _SIDES if (names := model.sets(side)))
        for row in model.best_first:
            aurocs = [_UNKNOWN if mean is None else _percent(mean.auroc) for mean in (row.near, row.far)]
            accuracy = _UNKNOWN if row.before is None else _percent(row.before.accuracy)
            about = f"opnp {record.versions.get('opnp', '')}; {sets}"
            writer.writerow([_UNKNOWN, row.method, *aurocs, accuracy, "No", model.model, about])
    return text.getvalue()


def _regrets(record: BenchRecord) -> list[str]:
    """Return mean and worst regret of each row that ran on every one of several models."""
    regrets = record.regrets
    if len(record.models) < 2 or not regrets:
        return []
    cells = [[name, _percent(fmean(each.values())), _percent(max(each.values()))] for name, each in regrets.items()]
    title = f"## Regret over {len(record.models)} models"
    return ["", title, "", *_table(["method", "mean regret", "worst regret"], cells)]


def sweep_markdown(record: SweepRecord) -> str:
    """Return the tables of a record as Markdown: figures in percent, the best of each column in bold.

    Example:
        >>> from opnp.values.sweep import SweepBase
        >>> base = SweepBase(0.3, 0.0, 0.1, 0.0, "layer", "gradient")
        >>> record = SweepRecord(seed=3, base=base, calibration_bins=15, versions={}, curves=(), models=())
        >>> sweep_markdown(record).splitlines()[0]
        '# Sweep'

    """
    versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()))
    base = ", ".join(f"{name} {value}" for name, value in asdict(record.base).items())
    lines = ["# Sweep", "", *_SWEEP_PREFACE, "", f"Base: {base}. Seed {record.seed}; {versions}."]
    for model in record.models:
        lines += _swept_model(model, record.curves)
    return "\n".join(lines) + "\n"


def _head_lines(model: JudgedModel) -> list[str]:
    files = ["train", "test", *(f"ood_{name}" for name in sorted(model.nearness))]
    counts = ", ".join(f"{name} {model.data[name].samples}" for name in files)
    return [
        "",
        f"## {model.model}",
        "",
        f"{model.classes} classes, {model.features} features. Samples: {counts}.",
    ]


def _bench_model(model: ModelResult, *, bins: int) -> list[str]:
    rest = model.id_samples["rest"]
    return [
        *_head_lines(model),
        f"Of test, {model.validation_samples} are for validation and {rest} are the rest.",
        *_overall(model),
        *_published(model),
        *_detection(model, "far", "Far OOD"),
        *_detection(model, "near", "Near OOD"),
        *_classifier(model, bins=bins),
        *_settings(model),
        *_bench_remarks(model),
    ]


def _overall(model: ModelResult) -> list[str]:
    """Return every row by its means over all OOD sets, the largest AUROC first."""
    best, rows = model.best_single, model.best_first
    if not rows:
        return []
    cells = [
        [row.method, "" if row.mean is None else _percent(row.mean.auroc), _percent(model.regret(row))] for row in rows
    ]
    hindsight = [] if best is None else ["", f"The best published single score here is {best.method}."]
    return ["", "### All OOD sets", *hindsight, "", *_table(["method", "AUROC", "regret"], cells)]


def _published(model: ModelResult) -> list[str]:
    """Return the figures that others published, each beside the row that has its method here."""
    if not model.published:
        return []
    cells = [
        [
            each.method,
            _both(each.fpr95, each.auroc),
            each.row,
            "" if (found := model.ours(each)) is None else _both(found.fpr95, found.auroc),
            each.source,
        ]
        for each in model.published
    ]
    titles = ["method", "published", "row here", "here", "source of the published figures"]
    preface = "FPR95 / AUROC, means over the OOD sets. Published figures are those of their sources, on their own data."
    return ["", "### Published figures", "", preface, "", *_table(titles, cells, are_texts=True)]


def _both(fpr95: float | None, auroc: float | None) -> str:
    return f"{_percent(fpr95) or '-'} / {_percent(auroc) or '-'}"


def _detection(model: ModelResult, nearness: Nearness, title: str) -> list[str]:
    names = model.sets(nearness)
    if not names:
        return []
    lines, means = ["", f"### {title}"], ["mean"] if len(names) > 1 else []
    for group, heading in _GROUPS.items():
        rows = [row for row in model.best_first if row.group == group]
        if not rows:
            continue
        figures = {row.method: _figures(row, names, nearness) for row in rows}
        columns = list(zip(*figures.values(), strict=True))
        fewest = [min(each.fpr95 for each in column) for column in columns]
        most = [max(each.auroc for each in column) for column in columns]
        cells = [
            [name, *(_pair(each, low, high) for each, low, high in zip(values, fewest, most, strict=True))]
            for name, values in figures.items()
        ]
        lines += ["", f"{heading}:", "", *_table(["method", *names, *means], cells)]
    return lines


def _figures(row: MethodRow, names: Sequence[str], nearness: Nearness) -> list[DetectionFigures]:
    mean = row.near if nearness == "near" else row.far
    detection = row.detection or {}
    return [*(detection[name] for name in names), *([] if mean is None or len(names) == 1 else [mean])]


def _pair(figures: DetectionFigures, fewest: float, most: float) -> str:
    fpr95, auroc = _percent(figures.fpr95), _percent(figures.auroc)
    return f"{_marked(fpr95, is_best=figures.fpr95 == fewest)} / {_marked(auroc, is_best=figures.auroc == most)}"


def _marked(text: str, *, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def _classifier(model: ModelResult, *, bins: int) -> list[str]:
    cells = [
        [
            row.method,
            _percent(row.before.accuracy),
            "" if row.after is None else _percent(row.after.accuracy),
            _percent(row.before.ece),
            "" if row.after is None else _percent(row.after.ece),
        ]
        for row in model.methods
        if row.status == "ok" and row.before is not None
    ]
    if not cells:
        return ["", "### Classifier", "", "The ID test samples have no labels: accuracy and calibration are unknown."]
    return [
        "",
        "### Classifier",
        "",
        f"ID accuracy and expected calibration error ({bins} bins) of the original head, and of the logits that the",
        "score is read off; empty where it is read off none. The answers come from the original head in any case.",
        "",
        *_table(["method", "accuracy", "accuracy after", "ECE", "ECE after"], cells),
    ]


def _settings(model: ModelResult) -> list[str]:
    cells = [
        [row.method, row.source, f"`{json.dumps(row.settings, sort_keys=True)}`" if row.settings else "", row.citation]
        for row in model.methods
    ]
    return ["", "### Settings", "", *_table(["method", "computed by", "settings", "from"], cells, are_texts=True)]


def _bench_remarks(model: ModelResult) -> list[str]:
    failed = [f"- {row.method}: {row.reason}" for row in model.methods if row.status == "failed"]
    notes = [f"- {row.method}: {note}" for row in model.methods for note in row.notes]
    lines = []
    for title, items in (("Did not run", failed), ("Warnings", notes)):
        if items:
            lines += ["", f"### {title}", "", *(" ".join(item.split()) for item in items)]
    return lines


def _swept_model(model: SweptModel, curves: Sequence[SweepCurve]) -> list[str]:
    named = "; ".join(f"{side}: {', '.join(names)}" for side in _SIDES if (names := model.sets(side)))
    lines = [*_head_lines(model), f"OOD sets, {named}."]
    for curve in curves:
        lines += _curve(curve, model)
    return lines


def _curve(curve: SweepCurve, model: SweptModel) -> list[str]:
    points = [point for point in model.curve(curve.name) if not _is_energy(point.settings, model.energy.settings)]
    ran = [point for point in points if point.status == "ok"]
    rows = [([_ENERGY, *("" for _ in curve.varies[1:])], [model.energy])]
    for labels, group in groupby(ran, key=lambda point: point.labels(curve.varies)):
        draws, label = list(group), list(labels)
        label[-1] += f" ({len(draws)} draws)" if len(draws) > 1 else ""
        rows.append((label, draws))
    columns = _columns([draws for _, draws in rows])
    figures = zip(*(column.cells() for column in columns), strict=True)
    titles = [*curve.varies, *(column.title for column in columns)]
    cells = [[*label, *row] for (label, _), row in zip(rows, figures, strict=True)]
    return [
        "",
        f"### {curve.name}",
        "",
        f"{curve.title}.",
        "",
        *_table(titles, cells, labels=len(curve.varies)),
        *_sweep_remarks(points, curve.varies),
    ]


def _is_energy(settings: SweepSettings, energy: SweepSettings) -> bool:
    """Return whether nothing is removed, and the score is that of the first row."""
    names = ("w_min", "w_max", "o_min", "o_max", "temperature", "score")
    return all(getattr(settings, name) == getattr(energy, name) for name in names)


def _columns(rows: Sequence[Sequence[SweepPoint]]) -> list[_Column]:
    """Return the columns of a table; a side without OOD sets has none, nor have answers without labels."""
    columns = []
    for side in ("far", "near"):
        for title, figure, is_small_better in (("FPR95", "fpr95", True), ("AUROC", "auroc", False)):
            values = _values(rows, side, figure)
            if values:
                columns.append(_Column(f"{side} {title}", values, is_small_better=is_small_better))
    for title, figure, is_small_better in (("accuracy", "accuracy", False), ("ECE", "ece", True)):
        values = _values(rows, "head", figure)
        if values:
            columns.append(_Column(title, values, is_small_better=is_small_better))
    removed = tuple(tuple(point.removed_share or 0.0 for point in points) for points in rows)
    return [*columns, _Column("removed", removed)]


def _values(rows: Sequence[Sequence[SweepPoint]], part: str, figure: str) -> tuple[tuple[float, ...], ...]:
    """Return one figure of a part of every point, or nothing where there is no such part."""
    parts = [[getattr(point, part) for point in points] for points in rows]
    if any(each is None for row in parts for each in row):
        return ()
    return tuple(tuple(float(getattr(each, figure)) for each in row) for row in parts)


def _sweep_remarks(points: Sequence[SweepPoint], varies: Sequence[str]) -> list[str]:
    """Return what did not run, what was warned of, and which value of a ratio changed nothing."""
    remarks: dict[str, None] = {}
    for before, point in zip([None, *points], points, strict=False):
        place = ", ".join(f"{name} {label}" for name, label in zip(varies, point.labels(varies), strict=True))
        if point.status == "failed":
            remarks[f"- {place} did not run: {' '.join(point.reason.split())}"] = None
        remarks |= {f"- {place}: {' '.join(note.split())}": None for note in point.notes}
        if before is not None and not point.notes and _is_repeated(before, point):
            remarks[f"- {place}: the same entries are removed as at {before.labels(varies)[0]}."] = None
    return ["", *remarks] if remarks else []


def _is_repeated(before: SweepPoint, point: SweepPoint) -> bool:
    """Return whether two points that one ratio should tell apart have the same mask."""
    is_ratio = len(point.varied) == 1 and point.varied.keys() <= {"w_min", "w_max", "o_min", "o_max"}
    return is_ratio and point.mask_digest is not None and point.mask_digest == before.mask_digest


def _table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, labels: int = 1, are_texts: bool = False
) -> list[str]:
    rule = ["---" if are_texts or place < labels else "---:" for place in range(len(titles))]
    return [f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"

"""A record as Markdown tables: far and near OOD apart, what became of the classifier, and what did not run."""

import json
from collections.abc import Iterable, Sequence

from opnp.bench.bench_record import BenchRecord, DetectionFigures, MethodRow, ModelResult, Nearness

__all__ = ["results_markdown"]

_GROUPS = {
    "reference": "opnp at fixed ratios",
    "baseline": "Baselines at published settings",
    "combination": "Baselines on opnp's pruned head",
    "product": "opnp as it is used",
}

_PREFACE = (
    "All figures are in %. Detection is given as FPR95 / AUROC: FPR95 is the share of OOD kept where 95 % of ID is",
    "kept (ID positive, as in the papers), lower is better; AUROC is the same for both conventions, higher is better.",
    "The other convention of FPR95 and both AUPR stand in results.json, times and memory in timings.json.",
    "",
    "The settings of the baselines were fixed beforehand; which of them is best is known with hindsight only. What",
    "stands under `opnp as it is used` is fitted without OOD data. `OPNP()` is calibrated on part of the ID test",
    "samples: it, its members by themselves and the energy beside them are judged by the rest of those.",
    "",
    "Regret of a method on a model is the AUROC of the best published single score among these rows, chosen with",
    "hindsight, less its own; at least 0. Both are means over all OOD sets.",
)


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
        *_PREFACE,
        "",
        f"Seed {record.seed}; {versions}.",
    ]
    for model in record.models:
        lines += _model(model, bins=record.calibration_bins)
    return "\n".join(lines) + "\n"


def _model(model: ModelResult, *, bins: int) -> list[str]:
    files = ["train", "test", *(f"ood_{name}" for name in sorted(model.nearness))]
    counts = ", ".join(f"{name} {model.data[name].samples}" for name in files)
    lines = [
        "",
        f"## {model.model}",
        "",
        f"{model.classes} classes, {model.features} features. Samples: {counts}.",
        f"Of test, {model.validation_samples} are for validation and {model.id_samples['rest']} are the rest.",
    ]
    lines += _overall(model)
    lines += _detection(model, "far", "Far OOD")
    lines += _detection(model, "near", "Near OOD")
    lines += _classifier(model, bins=bins)
    lines += _settings(model)
    lines += _remarks(model)
    return lines


def _overall(model: ModelResult) -> list[str]:
    """Return every row by its means over all OOD sets, the largest AUROC first."""
    best, rows = model.best_single, model.best_first
    if not rows:
        return []
    cells = [
        [row.method, *("" if each is None else _percent(each) for each in (_auroc(row), model.regret(row)))]
        for row in rows
    ]
    hindsight = [] if best is None else ["", f"The best published single score here is {best.method}."]
    return ["", "### All OOD sets", *hindsight, "", *_table(["method", "AUROC", "regret"], cells)]


def _auroc(row: MethodRow) -> float | None:
    return None if row.mean is None else row.mean.auroc


def _detection(model: ModelResult, nearness: Nearness, title: str) -> list[str]:
    names = sorted(name for name, value in model.nearness.items() if value == nearness)
    if not names:
        return []
    lines, means = ["", f"### {title}"], ["mean"] if len(names) > 1 else []
    for group, rows in _by_group(model):
        figures = {row.method: _figures(row, names, nearness) for row in rows}
        columns = list(zip(*figures.values(), strict=True))
        fewest = [min(each.fpr95 for each in column) for column in columns]
        most = [max(each.auroc for each in column) for column in columns]
        cells = [
            [name, *(_pair(each, low, high) for each, low, high in zip(values, fewest, most, strict=True))]
            for name, values in figures.items()
        ]
        lines += ["", f"{_GROUPS[group]}:", "", *_table(["method", *names, *means], cells)]
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
    return ["", "### Settings", "", *_table(["method", "computed by", "settings", "from"], cells, is_text=True)]


def _remarks(model: ModelResult) -> list[str]:
    failed = [f"- {row.method}: {row.reason}" for row in model.methods if row.status == "failed"]
    notes = [f"- {row.method}: {note}" for row in model.methods for note in row.notes]
    lines = []
    for title, items in (("Did not run", failed), ("Warnings", notes)):
        if items:
            lines += ["", f"### {title}", "", *(" ".join(item.split()) for item in items)]
    return lines


def _by_group(model: ModelResult) -> Iterable[tuple[str, list[MethodRow]]]:
    for group in _GROUPS:
        rows = [row for row in model.methods if row.group == group and row.status == "ok"]
        if rows:
            yield group, rows


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, is_text: bool = False) -> list[str]:
    rule = ["---", *("---" if is_text else "---:" for _ in columns[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"

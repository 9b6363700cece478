"""Tables of the page, with the values that they are sorted by; and what is needed to make a run again."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from opnp.report.results import ReportedModel, ReportedRow, Results
from opnp.report.wording import (
    GROUP_TITLES,
    brief_percent,
    chosen_ratios,
    count_text,
    fused_members,
    has_shaping,
    ratio_text,
    set_label,
)
from opnp.values.bench import PRODUCT, regrets
from opnp.values.figures import DetectionFigures, Nearness
from opnp.values.fit import FitRecord
from opnp.values.sweep import SweepCurve, SweepPoint, SweepRecord, SweptModel

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "data_table",
    "fit_table",
    "methods_table",
    "origins_table",
    "published_table",
    "regrets_table",
    "run_table",
    "sets_table",
    "sweep_table",
    "text_cell",
]

FPR95_ID = "FPR95, ID positive"
FPR95_OOD = "FPR95, OOD positive"
CONVENTIONS = (
    f"{FPR95_ID} (the papers): share of OOD kept where 95 % of ID is kept, lower is better. "
    f"{FPR95_OOD} (OpenOOD, pytorch-ood): share of ID flagged where 95 % of OOD is caught, lower is better. "
    "AUROC is the same for both, higher is better. All in %."
)
_HEAD: Mapping[str, Callable[[ReportedRow], float | None]] = {
    "ID accuracy": lambda row: row.accuracy_after,
    "ECE": lambda row: None if row.after is None else row.after.ece,
}
_SIDES: tuple[tuple[Nearness, str], ...] = (("far", "Far OOD"), ("near", "Near OOD"))


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: Its title.
        group: Title above it and its neighbours; empty for none.
        is_number: Whether it holds numbers.

    """

    title: str
    group: str = ""
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: what is shown, and what it is sorted by; None comes last."""

    text: str
    value: float | str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row.

    Attributes:
        cells: The first names the row.
        mark: What the row is, in a word, where it stands out; else empty.
        reason: Why there are no figures; empty where there are.

    """

    cells: tuple[Cell, ...]
    mark: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        title: What it shows, in a few words.
        note: What its columns mean; empty where that is plain.
        columns: The columns; none where each row is a name and its value.
        rows: The rows.

    """

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Titles above the columns, each with the columns that it spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return tuple(spans)


def methods_table(model: ReportedModel) -> Table:
    """Return the methods of a model, the chosen one first, then by mean AUROC: over far and near sets, and the head."""
    sides = [(name, title) for name, title in _SIDES if model.sets(name)]
    columns = [Column("Method", is_number=False), Column("AUROC", "All OOD sets")]
    columns += [Column("Regret", "All OOD sets")] if model.best_single else []
    for name, title in sides:
        sets = ", ".join(set_label(each) for each in model.sets(name))
        group = title if sets == name else f"{title}: {'mean of ' if len(model.sets(name)) > 1 else ''}{sets}"
        columns += [Column(each, group) for each in ("AUROC", FPR95_ID, FPR95_OOD)]
    head = [name for name, values in _HEAD.items() if any(values(row) is not None for row in model.methods)]
    columns += [*(Column(name, "Head scored with") for name in head)]
    columns += [Column("Kind", is_number=False), Column("ID samples")]
    regret = " Regret: AUROC of the best published single score, chosen with hindsight, less the row's own, means over "
    places = {row.method: place for place, row in enumerate(model.best_first)}
    ordered = sorted(model.methods, key=lambda row: (row is not model.chosen, places.get(row.method, len(places))))
    return Table(
        title="Methods",
        note=CONVENTIONS
        + (f"{regret}all OOD sets, in points." if model.best_single else "")
        + " ID accuracy and ECE are those of the logits that the score is read off; answers come from "
        "the original head. The chosen row stands first, then the largest mean AUROC.",
        columns=tuple(columns),
        rows=tuple(_method_row(model, row, [name for name, _ in sides], head) for row in ordered),
    )


def sets_table(model: ReportedModel) -> Table:
    """Return the methods of a model on each OOD set."""
    titles = ("AUROC", FPR95_ID, FPR95_OOD, "AUPR, ID positive", "AUPR, OOD positive")
    texts = [Column(title, is_number=False) for title in ("Method", "OOD set", "Side")]
    rows = []
    for row in model.methods:
        for name, figures in (row.detection or {}).items():
            first = map(text_cell, (row.method, set_label(name), model.nearness.get(name, "")))
            auprs = map(_share, (figures.aupr_id_positive, figures.aupr_ood_positive))
            rows.append(Row((*first, *_figures(figures), *auprs), mark=_mark(model, row)))
    return Table(
        title="Methods on each OOD set",
        note=CONVENTIONS,
        columns=(*texts, *map(Column, titles)),
        rows=tuple(rows),
    )


def published_table(model: ReportedModel) -> Table | None:
    """Return what others published of a model, each beside the row that has its method here; None where nothing is."""
    if not model.published:
        return None
    columns = [Column("Method", is_number=False), *(Column(each, "Published") for each in (FPR95_ID, "AUROC"))]
    columns += [Column("Row", "Here", is_number=False), *(Column(each, "Here") for each in (FPR95_ID, "AUROC"))]
    rows = []
    for each in model.published:
        found = model.ours(each)
        figures = (each.fpr95, each.auroc), (None, None) if found is None else (found.fpr95, found.auroc)
        published, here = (tuple(map(_share, pair)) for pair in figures)
        cells = (text_cell(each.method), *published, text_cell(each.row), *here, text_cell(each.source))
        rows.append(Row(cells))
    return Table(
        title="Published figures",
        note="Means over the OOD sets, in %. Published figures are those of their sources, on their own data.",
        columns=(*columns, Column("Source", is_number=False)),
        rows=tuple(rows),
    )


def regrets_table(models: Sequence[ReportedModel]) -> Table | None:
    """Return mean, worst and single regrets of the rows that ran on every one of several models; None for one model."""
    found = regrets(models)
    if len(models) < 2 or not found:
        return None
    names = list(next(iter(found.values())))
    columns = [Column("Method", is_number=False), *(Column(each, "Regret") for each in ("mean", "worst"))]
    rows = [
        Row(
            (text_cell(method), *map(_share, (fmean(each.values()), max(each.values()), *each.values()))),
            mark="as used" if method == PRODUCT else "",
        )
        for method, each in found.items()
    ]
    return Table(
        title="Regret over the models",
        note="AUROC of the best published single score of a model, chosen with hindsight, less the row's own, in "
        "points; means over the OOD sets. Rows that ran on every model, the smallest mean first.",
        columns=(*columns, *(Column(name, "Models") for name in names)),
        rows=tuple(rows),
    )


def sweep_table(record: SweepRecord, model: SweptModel) -> Table:
    """Return the best point of each curve by mean AUROC over the OOD sets, beside the energy; draws are averaged."""
    texts = [Column(title, is_number=False) for title in ("Curve", "Best at")]
    sides = [(name, title) for name, title in _SIDES if getattr(model.energy, name) is not None]
    columns = [*texts, *(Column(each, title) for _, title in sides for each in (FPR95_ID, "AUROC")), Column("Points")]
    names = [name for name, _ in sides]
    rows = [
        Row(
            (text_cell("Energy, original head"), text_cell(""), *_side_cells([model.energy], names), _number(1)),
            "compared with",
        )
    ]
    for curve in record.curves:
        points = [point for point in model.points if point.curve == curve.name]
        rows.append(_curve_row(curve, points, names))
    return Table(
        title="Best point of each curve",
        note="The point with the largest mean AUROC over the OOD sets, known with hindsight only; opnp tune chooses "
        f"on OOD validation data. {FPR95_ID}: share of OOD kept where 95 % of ID is kept, lower is better. AUROC: "
        "higher is better. All in %; draws are averaged.",
        columns=tuple(columns),
        rows=tuple(rows),
    )


def _curve_row(curve: SweepCurve, points: list[SweepPoint], names: list[Nearness]) -> Row:
    draws: dict[tuple[str, ...], list[SweepPoint]] = {}
    for point in points:
        if point.mean is not None:
            draws.setdefault(point.labels(curve.varies), []).append(point)
    if not draws:
        reasons = sorted({point.reason for point in points if point.reason})
        return Row((text_cell(curve.name),), reason=reasons[0] if reasons else "no point ran")
    place = max(draws, key=lambda labels: fmean(point.mean.auroc for point in draws[labels] if point.mean is not None))
    where = ", ".join(f"{name} {label}" for name, label in zip(curve.varies, place, strict=True))
    return Row((text_cell(curve.name), text_cell(where), *_side_cells(draws[place], names), _number(len(points))))


def _side_cells(points: list[SweepPoint], names: list[Nearness]) -> Iterator[Cell]:
    for name in names:
        figures = [each for each in (getattr(point, name) for point in points) if each is not None]
        yield _share(fmean(each.fpr95 for each in figures) if figures else None)
        yield _share(fmean(each.auroc for each in figures) if figures else None)


def _method_row(model: ReportedModel, row: ReportedRow, sides: Iterable[Nearness], head: Iterable[str]) -> Row:
    if row.status != "ok":
        return Row((text_cell(row.method),), reason=row.reason or "no reason is recorded")
    cells = [_share(None if row.mean is None else row.mean.auroc)]
    cells += [_share(model.regret(row))] if model.best_single else []
    cells += [cell for name in sides for cell in _figures(getattr(row, name))]
    cells += [_share(_HEAD[name](row)) for name in head]
    last = text_cell(_kind(row)), _number(model.id_samples.get(row.split))
    return Row((text_cell(row.method), *cells, *last), mark=_mark(model, row))


def _kind(row: ReportedRow) -> str:
    """Return the kind of a row; a reference that neither prunes nor shapes is its score alone."""
    if len(fused_members(row.settings)) == 1:
        return "one member"
    is_bare = not any(chosen_ratios(row.settings).values()) and not has_shaping(row.settings)
    return "score alone" if row.group == "reference" and is_bare else GROUP_TITLES[row.group]


def _mark(model: ReportedModel, row: ReportedRow) -> str:
    if row is model.chosen:
        return "chosen"
    return "compared with" if row is model.baseline else ""


def _figures(figures: DetectionFigures | None) -> tuple[Cell, ...]:
    if figures is None:
        return (_share(None),) * 3
    return tuple(map(_share, (figures.auroc, figures.fpr95, figures.fpr95_ood_positive)))


def text_cell(text: str) -> Cell:
    """Return a cell that is sorted by its text."""
    return Cell(text, text)


def _number(count: int | None) -> Cell:
    return Cell("\N{EN DASH}" if count is None else count_text(count), count)


def _share(value: float | None) -> Cell:
    return Cell("\N{EN DASH}" if value is None else f"{100 * value:.2f}", value)


def run_table(results: Results, *, keep: float) -> Table:
    """Return seeds, versions and options of a run, and of this report.

    Args:
        results: Records of a results folder.
        keep: Share of ID kept at the thresholds that figures draw.

    """
    return _facts("Versions, seeds and options", _run_facts(results, keep))


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> Table:
    return Table(title, "", (), tuple(Row((text_cell(name), text_cell(value))) for name, value in facts))


def _run_facts(results: Results, keep: float) -> Iterator[tuple[str, str]]:
    if (bench := results.bench) is not None:
        yield ("seed", str(bench.seed))
        yield ("bins of calibration errors", str(bench.calibration_bins))
    if (demo := results.demo) is not None:
        yield ("seed", str(demo.seed))
        yield ("share of ID that thresholds are calibrated to keep", brief_percent(demo.keep))
    if (sweep := results.sweep) is not None:
        yield ("seed of the sweep", str(sweep.seed))
        base = sweep.base
        ratios = (base.w_min, base.w_max, base.o_min, base.o_max)
        words = f"rho_w_min, rho_w_max, rho_o_min, rho_o_max = {', '.join(map(ratio_text, ratios))}"
        yield ("base of the sweep", f"{words}; scope {base.scope}, neuron {base.neuron}")
    yield ("share of ID kept at the thresholds of figures", brief_percent(keep))
    records = (results.bench, results.demo, results.sweep, results.fit)
    versions = _merged(record.versions for record in records if record is not None)
    for package, version in sorted(versions.items()):
        yield (f"{package} version", version)


def fit_table(record: FitRecord) -> Table:
    """Return what the detector was fitted on and with."""
    facts = [
        ("training samples", count_text(record.training_samples)),
        ("calibration samples", count_text(len(record.calibration_scores))),
        ("settings in words", record.settings_text),
        ("SHA-256 of the head", record.head_sha256),
        *_facts_of_values(record.settings),
    ]
    return _facts("What the detector was fitted with", facts)


def data_table(results: Results, name: str) -> Table | None:
    """Return the data of a model, from the benchmark, the sweep or the demo; None where there is none of it."""
    models = (*results.models, results.swept(name))
    model = next((each for each in models if each is not None and each.model == name), None)
    if model is None:
        return None
    rows = [
        Row(
            (
                text_cell(each),
                text_cell(model.nearness.get(each.removeprefix("ood_"), "")),
                _number(source.samples),
                *([text_cell(source.sha256)] if source.sha256 else []),
            )
        )
        for each, source in model.data.items()
    ]
    names = ("Set", "Side", "Samples", "SHA-256 of its file")[: max(len(row.cells) for row in rows)]
    return Table("Data", "", tuple(Column(each, is_number=each == "Samples") for each in names), tuple(rows))


def origins_table(model: ReportedModel) -> Table:
    """Return what each method was run with, and the warnings that it issued."""
    names = ("Method", "Computed by", "Settings from", "Settings", "Warnings")
    rows = (
        (
            row.method,
            row.source,
            row.citation or "not recorded",
            json.dumps(row.settings, sort_keys=True, ensure_ascii=False),
            "; ".join(row.notes) or "none",
        )
        for row in model.methods
    )
    columns = tuple(Column(each, is_number=False) for each in names)
    return Table("Settings of every method", "", columns, tuple(Row(tuple(map(text_cell, row))) for row in rows))


def _facts_of_values(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return JSON values as facts, one for each that is no list or mapping; long texts and lists are counted.

    Example:
        >>> list(_facts_of_values({"keep": 0.95, "counts": {"train": 7}, "x": [1, 2]}))
        [('keep', '0.95'), ('counts: train', '7'), ('x', '2 values')]

    """
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts_of_values(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield (name, f"{len(value)} values")
        else:
            text = "none" if value is None else str(value)
            yield (name, text if len(text) <= 400 else f"{len(text)} letters")


def _merged(versions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return versions by package; those that differ between records stand beside each other."""
    found: dict[str, list[str]] = {}
    for each in versions:
        for package, version in each.items():
            known = found.setdefault(package, [])
            if version not in known:
                known.append(version)
    return {package: ", ".join(known) for package, known in found.items()}

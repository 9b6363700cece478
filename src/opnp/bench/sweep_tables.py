"""The record of a sweep as Markdown: one table a curve, the energy of the original head first, near and far apart."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import fmean, stdev

from opnp.bench.sweep_record import SweepCurve, SweepPoint, SweepRecord, SweepSettings, SweptModel

__all__ = ["sweep_markdown"]

_PREFACE = (
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


def sweep_markdown(record: SweepRecord) -> str:
    """Return the tables of a record as Markdown: figures in percent, the best of each column in bold.

    Example:
        >>> from opnp.bench import SweepBase
        >>> base = SweepBase(0.3, 0.0, 0.1, 0.0, "layer", "gradient")
        >>> record = SweepRecord(seed=3, base=base, calibration_bins=15, versions={}, curves=(), models=())
        >>> sweep_markdown(record).splitlines()[0]
        '# Sweep'

    """
    versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()))
    base = ", ".join(f"{name} {value}" for name, value in asdict(record.base).items())
    lines = ["# Sweep", "", *_PREFACE, "", f"Base: {base}. Seed {record.seed}; {versions}."]
    for model in record.models:
        lines += _model(model, record.curves)
    return "\n".join(lines) + "\n"


def _model(model: SweptModel, curves: Sequence[SweepCurve]) -> list[str]:
    files = ["train", "test", *(f"ood_{name}" for name in sorted(model.nearness))]
    counts = ", ".join(f"{name} {model.data[name].samples}" for name in files)
    sides = {side: sorted(name for name, value in model.nearness.items() if value == side) for side in ("far", "near")}
    named = "; ".join(f"{side}: {', '.join(names)}" for side, names in sides.items() if names)
    lines = ["", f"## {model.model}", "", f"{model.classes} classes, {model.features} features. Samples: {counts}."]
    lines += [f"OOD sets, {named}."]
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
        *_remarks(points, curve.varies),
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


def _remarks(points: Sequence[SweepPoint], varies: Sequence[str]) -> list[str]:
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


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, labels: int) -> list[str]:
    rule = ["---" if index < labels else "---:" for index in range(len(titles))]
    return [f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows)]

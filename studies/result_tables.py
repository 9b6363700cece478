"""Tables of the results page, each from records alone."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opnp.bench.methods import published_settings
from opnp.core import PANEL
from opnp.values.bench import BenchRecord, MethodRow, ModelResult
from opnp.values.figures import DetectionFigures
from opnp.values.sweep import SweepPoint, SweepRecord, SweptModel

__all__ = [
    "NOTABLE",
    "combination_table",
    "combinations",
    "left_out_table",
    "method_table",
    "other_table",
    "panel_table",
    "parts_table",
    "ratio_tables",
    "regret_table",
    "samples_table",
    "settings_table",
    "short_table",
    "table",
]

Values = Mapping[str, Any]
"""Part of a JSON record."""

NOTABLE = 0.1
"""Points of AUROC from which on a regret is spoken of."""

_SWEPT = ("w_min", "w_min-class", "w_max", "w_max-class", "o_min", "o_min-aggregate", "o_max", "o_max-aggregate")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def panel_table(record: Values) -> str:
    """Return the AUROC of `OPNP()`, of its members and of the energy on each model, beside the best single setting."""
    rows, best = record["rows"], record["best_single"]
    models = list(best)
    fused = rows["OPNP()"]
    shown = {"OPNP()": fused, "Energy": rows["Energy"]} | {
        single: rows[single] for single in ("MSP", "GEN", "ReAct 0.95", "SCALE 0.85", "fDBD", "Mahalanobis++", "ViM")
    }
    lines = [
        [name, *(f"{row['auroc'][model]:.2f}" for model in models), f"{row['mean_auroc']:.2f}", *_regret(row)]
        for name, row in shown.items()
    ]
    hindsight = [f"{each['auroc']:.2f} {each['name']}" for each in best.values()]
    mean = statistics.fmean(each["auroc"] for each in best.values())
    lines.append(["best of 26 with hindsight", *hindsight, f"{mean:.2f}", "0.00", "0.00"])
    return table(["method", *models, "mean AUROC", "mean regret", "worst regret"], lines)


def regret_table(record: Values, *, kind: str, start: str = "", most: int | None = None) -> str:
    """Return the rows of one kind whose name begins so, least mean regret first: singles, or fusions."""
    found = [(name, row) for name, row in record["rows"].items() if row["kind"] == kind and name.startswith(start)]
    found.sort(key=lambda pair: pair[1]["mean_regret"])
    return table(
        ["method", "mean AUROC", "mean regret", "worst regret"],
        ([name, f"{row['mean_auroc']:.2f}", *_regret(row)] for name, row in found[:most]),
    )


def left_out_table(record: Values) -> str:
    """Return the form of the pruned head that the other models choose, and its regret on the model left out."""
    models = record["left_out"]["form of the pruned head"]["models"]
    return table(
        ["model left out", "form of least regret on the others", "regret on it"],
        (
            [name, each["chosen"].removeprefix("panel with the "), f"{each['regret']:.2f}"]
            for name, each in models.items()
        ),
    )


def short_table(record: Values) -> str:
    """Return the fusion, its members by themselves, the energy and the best single setting of each model as a table."""
    rows, best, models = record["rows"], record["best_single"], list(record["best_single"])
    shown = {"**`OPNP()`**": "OPNP()"} | {name: f"{name} alone" for name in PANEL} | {"energy": "Energy"}
    lines = [_short_row(title, rows[name]["auroc"], *_regret(rows[name])) for title, name in shown.items()]
    lines.append(_short_row("best of 26", {model: best[model]["auroc"] for model in models}, "0.00", "0.00"))
    numbers = [str(place) for place in range(1, len(models) + 1)]
    legend = "; ".join(f"{number}\N{NO-BREAK SPACE}{model}" for number, model in zip(numbers, models, strict=True))
    return "\n".join(
        [
            table(["AUROC in %", *numbers, "mean regret", "worst"], lines),
            "",
            *textwrap.wrap(f"Models: {legend}.", width=110, break_on_hyphens=False),
        ]
    )


def _short_row(name: str, aurocs: Mapping[str, float], mean: str, worst: str) -> list[str]:
    return [name, *(f"{auroc:.1f}" for auroc in aurocs.values()), mean, worst]


def _regret(row: Values) -> tuple[str, str]:
    return f"{row['mean_regret']:.2f}", f"{row['worst_regret']:.2f}"


def method_table(model: ModelResult) -> str:
    """Return every method that reads the original head, and the detector as it is used, on one model."""
    rows = [row for row in model.methods if row.status == "ok" and row.group in ("baseline", "reference", "product")]
    seen = ("MSP (pytorch-ood)", "Energy (pytorch-ood)")
    return table(
        ["method", "far", "near", "accuracy", "ECE"],
        ([row.method, pair(row.far), pair(row.near), *_classifier(row)] for row in rows if row.method not in seen),
    )


def _classifier(row: MethodRow) -> list[str]:
    if row.after is None:
        return ["", ""]
    return [f"{100 * row.after.accuracy:.2f}", f"{100 * row.after.ece:.2f}"]


def pair(figures: DetectionFigures | None) -> str:
    """Return FPR95 / AUROC in percent, or nothing."""
    return "" if figures is None else f"{100 * figures.fpr95:.2f} / {100 * figures.auroc:.2f}"


class Combination(NamedTuple):
    """A baseline alone, and what the pruned head changes: mean AUROC in percent, and points."""

    alone: float
    change: float


def combinations(record: BenchRecord) -> dict[str, dict[str, Combination]]:
    """Return what pruning adds to each baseline that it combines with, by name of the baseline and model."""
    found: dict[str, dict[str, Combination]] = {}
    for model in record.models:
        by_name = {row.method: row for row in model.methods if row.status == "ok"}
        for row in (row for row in by_name.values() if row.group == "combination"):
            name = row.method.split(" + ")[0]
            alone = (by_name.get(f"{name} (pytorch-ood)") or by_name[name]).mean
            if row.mean is not None and alone is not None:
                both = Combination(100 * alone.auroc, 100 * (row.mean.auroc - alone.auroc))
                found.setdefault(name, {})[model.model] = both
    return found


def combination_table(record: BenchRecord) -> str:
    """Return what pruning adds to each baseline that it combines with: the difference in mean AUROC, by model."""
    names = [model.model for model in record.models]
    rows = []
    for baseline, by_model in combinations(record).items():
        found = [by_model.get(name) for name in names]
        rows.append([baseline, *("" if each is None else f"{each.alone:.2f} {each.change:+.2f}" for each in found)])
    return table(["method", *names], rows)


def other_table(record: BenchRecord, kind: str) -> str:
    """Return the means over the seeds of one kind of classifier, FPR95 / AUROC by OOD set; the OOD sets as columns."""
    models = [model for model in record.models if model.model.startswith(kind)]
    sets = sorted(models[0].nearness)
    rows = []
    for row in models[0].methods:
        if row.group in ("combination", "reference"):
            continue
        found = [_row(model, row.method) for model in models]
        rows.append([row.method.removesuffix(" (pytorch-ood)"), *(_mean_over(found, name) for name in sets)])
    titles = [f"{name} ({models[0].nearness[name]})" for name in sets]
    return table(["method", *titles], rows)


def _row(model: ModelResult, method: str) -> MethodRow:
    """Return the row of a method; the number of neighbours in the name of KNN may differ from seed to seed."""
    return next(row for row in model.methods if row.method == method or (_is_knn(row.method) and _is_knn(method)))


def _is_knn(method: str) -> bool:
    return method.startswith("KNN ")


def _mean_over(rows: Sequence[MethodRow], name: str) -> str:
    found = [row.detection[name] for row in rows if row.detection is not None]
    if len(found) < len(rows):
        return "did not run"
    values = ([each.fpr95 for each in found], [each.auroc for each in found])
    return " / ".join(f"{100 * statistics.fmean(column):.2f}" for column in values)


def parts_table(record: SweepRecord, curve: str) -> str:
    """Return energy, OPP, ONP and OPNP at one choice of ratios, by model."""
    columns = {
        model.model: {point.labels(["part"])[0]: point for point in model.curve(curve)} for model in record.models
    }
    parts = list(dict.fromkeys(part for points in columns.values() for part in points))
    titles = [f"{name}, {what}" for name in columns for what in ("FPR95 / AUROC", "accuracy")]
    rows = [[part, *(cell for points in columns.values() for cell in _cells(points[part]))] for part in parts]
    return table(["part", *titles], rows)


def _cells(point: SweepPoint) -> tuple[str, str]:
    if point.status != "ok":
        return ("nothing left", "")
    return pair(point.mean), "" if point.head is None else f"{100 * point.head.accuracy:.2f}"


def ratio_tables(model: SweptModel) -> str:
    """Return, for each ratio by itself, the value that does best on far and on near OOD, and what it costs."""
    plain = model.energy
    rows = [["energy, nothing removed", "", *_point(plain, "far"), "", *_point(plain, "near")]]
    for name in _SWEPT:
        points = [point for point in model.curve(name) if point.status == "ok"]
        cells = [name]
        for group in ("far", "near"):
            found = [point for point in points if _figures(point, group) is not None]
            if not found:
                cells += ["", "", ""]
                continue
            best = max(found, key=_auroc(group))
            cells += [best.labels([name.split("-")[0]])[0], *_point(best, group)]
        rows.append(cells)
    titles = ["best for far", "far", "accuracy", "best for near", "near", "accuracy"]
    return table(["ratio", *titles], rows)


def _point(point: SweepPoint, group: str) -> tuple[str, str]:
    figures = _figures(point, group)
    if figures is None:
        return "", ""
    return pair(figures), "" if point.head is None else f"{100 * point.head.accuracy:.2f}"


def _figures(point: SweepPoint, group: str) -> DetectionFigures | None:
    return point.far if group == "far" else point.near


def _auroc(group: str) -> Callable[[SweepPoint], float]:
    def value(point: SweepPoint) -> float:
        figures = _figures(point, group)
        return 0.0 if figures is None else figures.auroc

    return value


def samples_table(record: SweepRecord) -> str:
    """Return the mean AUROC by number of training samples, with the smallest and largest over the draws."""
    columns: dict[str, dict[int, list[float]]] = {}
    for model in record.models:
        found = columns.setdefault(model.model, {})
        for point in model.curve("samples"):
            if point.mean is not None:
                found.setdefault(point.settings.training_samples, []).append(100 * point.mean.auroc)
    sizes = sorted({size for found in columns.values() for size in found})
    rows = [[str(size), *(_spread(found.get(size, [])) for found in columns.values())] for size in sizes]
    return table(["training samples", *columns], rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def settings_table() -> str:
    """Return the frozen settings of the baselines, with where they come from."""
    small = published_settings(classes=100, features=342, samples=25_000)
    large = published_settings(classes=1000, features=1280, samples=1000)
    rows = {each.label: [each.label, "all", each.citation] for each in small if each in large}
    rows |= {each.label: [each.label, "fewer than 1000 classes", each.citation] for each in small if each not in large}
    rows |= {each.label: [each.label, "from 1000 classes on", each.citation] for each in large if each not in small}
    return table(["method", "models", "from"], rows.values())

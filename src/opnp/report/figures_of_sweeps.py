"""Figures of a sweep: FPR95 and AUROC against each ratio, and heat maps over two ratios."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import altair as alt

from opnp.report.panels import GREEN, SIDES, VERMILLION, Figure, Panel, data, legend_of, number, tips
from opnp.report.wording import RATIO_NAMES, chosen_ratios, has_shaping, percent, ratio_text
from opnp.values.figures import DetectionFigures, Nearness
from opnp.values.sweep import SweepCurve, SweepPoint, SweptModel

__all__ = ["grid_figure", "ratios_figure"]

Metric = Literal["fpr95", "auroc"]
_METRICS: tuple[Metric, ...] = ("fpr95", "auroc")
_WIDE = 50
_WORSE, _BETTER = "#FFFFFF", "#56B4E9"
"""Ends of the scale of a heat map: both light enough for black numbers."""


def ratios_figure(model: SweptModel, *, settings: Mapping[str, object] | None = None) -> Figure | None:
    """Return FPR95 and AUROC against each ratio by itself, the paper's Figure 3; None where no ratio was swept.

    Args:
        model: The sweep of a model.
        settings: Settings of the row of opnp as it is used, whose ratios are marked. They also say which reading and
            scope is drawn where the sweep has several.

    """
    settings = settings or {}
    found = {ratio: points for ratio in RATIO_NAMES if (points := _points(model, ratio, settings))}
    sides = [side for side in SIDES if getattr(model.energy, side) is not None]
    swept = {ratio: points for ratio, points in found.items() if _has_sides(points, sides)} if sides else {}
    if not swept:
        return None
    best = "; ".join(_best_sentence(model.energy, swept, side) for side in reversed(sides))
    ranges = [
        f"rho_{ratio} from {ratio_text(_value(points[0], ratio))} to {ratio_text(_value(points[-1], ratio))}, {side}: "
        f"AUROC {_range_text(points, side, 'auroc')}, FPR95 {_range_text(points, side, 'fpr95')}"
        for ratio, points in swept.items()
        for side in sides
    ]
    panels = [
        _ratio_panel(model.energy, ratio, points, metric=metric, settings=settings)
        for ratio, points in swept.items()
        for metric in _METRICS
    ]
    return Figure(
        "figure-3-ratios",
        "FPR95 and AUROC against each ratio",
        f"One ratio alone, at best: {best}",
        f"FPR95 and AUROC against each ratio by itself. {best}. {'; '.join(ranges)}.",
        tuple(panels),
    )


def _points(model: SweptModel, ratio: str, settings: Mapping[str, object]) -> list[SweepPoint]:
    """Return the points that vary one ratio alone, in the scope and the reading of the settings if there are such."""
    wanted = [ratio]
    if ratio.startswith("w") and settings.get("scope") == "class":
        wanted.insert(0, f"{ratio}-class")
    if ratio.startswith("o") and settings.get("neuron") == "aggregate":
        wanted.insert(0, f"{ratio}-aggregate")
    for name in wanted:
        found = [point for point in model.points if point.curve == name and point.status == "ok"]
        if found:
            return sorted(found, key=lambda point: _value(point, ratio))
    return []


def _has_sides(points: Sequence[SweepPoint], sides: Sequence[Nearness]) -> bool:
    return all(getattr(point, side) is not None for point in points for side in sides)


def _value(point: SweepPoint, ratio: str) -> float:
    return float(point.varied[ratio])


def _figure(point: SweepPoint, side: Nearness, metric: Metric) -> float:
    figures: DetectionFigures = getattr(point, side)
    value: float = getattr(figures, metric)
    return value


def _range_text(points: Sequence[SweepPoint], side: Nearness, metric: Metric) -> str:
    values = [_figure(point, side, metric) for point in points]
    return f"{percent(min(values))} to {percent(max(values))}"


def _best_sentence(energy: SweepPoint, swept: Mapping[str, Sequence[SweepPoint]], side: Nearness) -> str:
    """Return the best AUROC of one ratio alone beside that of the energy."""
    plain = _figure(energy, side, "auroc")
    found = [(_figure(point, side, "auroc"), ratio, _value(point, ratio)) for ratio in swept for point in swept[ratio]]
    auroc, ratio, value = max(found, key=lambda each: each[0])
    has_gain = value > 0 and percent(auroc) != percent(plain)
    at_best = f"{percent(auroc)} at rho_{ratio} = {ratio_text(value)}" if has_gain else "no ratio gains"
    return f"{side} AUROC {at_best} (Energy {percent(plain)})"


def _ratio_panel(
    energy: SweepPoint, ratio: str, points: Sequence[SweepPoint], *, metric: Metric, settings: Mapping[str, object]
) -> Panel:
    sides = [side for side in SIDES if getattr(energy, side) is not None]
    values = [_value(point, ratio) for point in points]
    rows: list[dict[str, object]] = []
    for side in sides:
        found = [number(_figure(point, side, metric), 100) for point in points]
        rows += [{"x": x, "y": y, "line": f"{side} OOD"} for x, y in zip(values, found, strict=True)]
        plain = number(_figure(energy, side, metric), 100)
        rows += [{"x": x, "y": plain, "line": f"Energy, {side}"} for x in (values[0], values[-1])]
    kind = f"{'weights' if ratio.startswith('w') else 'neurons'}, {'lowest' if ratio.endswith('min') else 'highest'}"
    mark = chosen_ratios(settings).get(ratio)
    words = "" if mark is None else f"; chosen {ratio_text(mark)}"
    words += ", without the shaping" if words and has_shaping(settings) else ""
    x = _ratio_axis(values, f"share of {kind}{words}")
    y = alt.Y("y:Q", title=f"{metric.upper()} (%)").scale(zero=False)
    roles: Mapping[str, Nearness] = {f"{side} OOD": side for side in sides} | {
        f"Energy, {side}": side for side in sides
    }
    dashes = {"near OOD": [1, 0], "far OOD": [1, 0], "Energy, near": [2, 3], "Energy, far": [7, 3]}
    dash = alt.StrokeDash("line:N", title=None).scale(domain=list(roles), range=[dashes[name] for name in roles])
    dash = dash.legend(symbolType="stroke")
    color = legend_of("line", roles).legend(symbolType="stroke")
    tooltip = tips(line="line", x=f"rho_{ratio}", y=f"{metric.upper()}, %")
    shapes = alt.Shape("line:N", legend=None).scale(domain=["near OOD", "far OOD"], range=["circle", "square"])
    lines = alt.Chart(data(rows)).mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color, strokeDash=dash)
    dots = alt.Chart(data(row for row in rows if str(row["line"]).endswith("OOD"))).mark_point(filled=True, size=36)
    layers = [lines, dots.encode(x=x, y=y, color=color, shape=shapes, tooltip=tooltip)]
    if mark is not None:
        rule = alt.Chart(data([{"x": mark}])).mark_rule(color=GREEN, strokeWidth=4, opacity=0.5)
        layers.insert(0, rule.encode(x=x))
    return Panel(alt.layer(*layers).properties(title=f"rho_{ratio}: {metric.upper()}"), 160)


def _ratio_axis(values: Sequence[float], title: str) -> alt.X:
    """Return an axis that holds zero: a logarithmic one where the ratios span decades."""
    filled = [value for value in values if value > 0]
    x = alt.X("x:Q", title=title)
    if len(filled) <= 2 or max(filled) < _WIDE * min(filled):
        return x.axis(format="~g", tickCount=6)
    decades = range(math.ceil(math.log10(min(filled)) - 1e-9), math.floor(math.log10(max(filled)) + 1e-9) + 1)
    ticks = [0.0, *(10.0**decade for decade in decades)]
    return x.scale(type="symlog", constant=min(filled)).axis(format="~g", values=ticks)


def grid_figure(model: SweptModel, curve: SweepCurve, *, settings: Mapping[str, object] | None = None) -> Figure | None:
    """Return heat maps over two ratios, or None where the curve is no grid of two ratios or nothing came of it.

    Args:
        model: The sweep of a model.
        curve: A curve of the sweep.
        settings: Settings of the row of opnp as it is used, which is marked where it lies on the grid.

    """
    if len(curve.varies) != 2 or not set(curve.varies) <= set(RATIO_NAMES):
        return None
    x, y = curve.varies
    points = [point for point in model.points if point.curve == curve.name and point.status == "ok"]
    chosen = _chosen_place(points, (x, y), settings)
    panels, findings = [], []
    for metric in reversed(_METRICS):
        for side in SIDES:
            judged = [point for point in points if getattr(point, side) is not None]
            if getattr(model.energy, side) is None or not judged:
                continue
            sign = -1 if metric == "auroc" else 1
            order = {
                id(point): (sign * _figure(point, side, metric), _value(point, y), _value(point, x)) for point in judged
            }
            best = min(judged, key=lambda point: order[id(point)])
            energy = percent(_figure(model.energy, side, metric))
            findings.append(
                f"{side} {metric.upper()} {percent(_figure(best, side, metric))} at rho_{x} = "
                f"{ratio_text(_value(best, x))}, rho_{y} = {ratio_text(_value(best, y))} (Energy {energy})"
            )
            panel = _heat(judged, (x, y), side=side, metric=metric, best=best, chosen=chosen)
            panels.append(
                replace(panel, chart=panel.chart.properties(title=f"{side} {metric.upper()} (%); Energy {energy}"))
            )
    if not panels:
        return None
    aurocs = [finding for finding in findings if " AUROC " in finding]
    frames = "framed: the best"
    if chosen is not None:
        frames += "; dashed: ratios chosen by OPNP" + (", without the shaping" if has_shaping(settings) else "")
    return Figure(
        f"heat-map-{curve.name}",
        f"Heat map over rho_{x} and rho_{y}",
        f"Best of the grid: {'; '.join(aurocs[::-1])}",
        f"Heat maps over rho_{x} and rho_{y}; {frames}. Best of the grid: {'; '.join(findings)}.",
        tuple(panels),
    )


def _chosen_place(
    points: Sequence[SweepPoint], names: tuple[str, str], settings: Mapping[str, object] | None
) -> dict[str, str] | None:
    """Return where the chosen ratios lie on a grid, whose other ratios are zero; None where they do not."""
    ratios = chosen_ratios(settings or {})
    is_there = all(ratios.get(name) in {_value(point, name) for point in points} for name in names)
    if not is_there or any(value for name, value in ratios.items() if name not in names):
        return None
    return {axis: ratio_text(ratios[name]) for axis, name in zip("xy", names, strict=True)}


def _heat(
    points: Sequence[SweepPoint],
    names: tuple[str, str],
    *,
    side: Nearness,
    metric: Metric,
    best: SweepPoint,
    chosen: Mapping[str, str] | None,
) -> Panel:
    def place(point: SweepPoint) -> dict[str, Any]:
        return {axis: ratio_text(_value(point, name)) for axis, name in zip("xy", names, strict=True)}

    rows = [place(point) | {"value": number(_figure(point, side, metric), 100)} for point in points]
    values = [sorted({_value(point, name) for point in points}) for name in names]
    x = alt.X("x:N", title=f"rho_{names[0]}", sort=list(map(ratio_text, values[0]))).axis(labelAngle=0)
    y = alt.Y("y:N", title=f"rho_{names[1]}", sort=list(map(ratio_text, reversed(values[1]))))
    ends = [_WORSE, _BETTER] if metric == "auroc" else [_BETTER, _WORSE]
    color = alt.Color("value:Q", legend=None).scale(range=ends, zero=False, nice=False, interpolate="rgb")
    tooltip = tips(x=f"rho_{names[0]}", y=f"rho_{names[1]}", value=f"{side} {metric.upper()}, %")
    cells = alt.Chart(data(rows)).encode(x=x, y=y)
    frames: list[tuple[dict[str, Any], dict[str, Any]]] = [(place(best), {"stroke": VERMILLION, "strokeWidth": 3})]
    if chosen is not None:
        frames += [(dict(chosen), {"stroke": "#FFFFFF", "strokeWidth": 4})]
        frames += [(dict(chosen), {"stroke": "#000000", "strokeWidth": 2, "strokeDash": [4, 3]})]
    layers = [
        cells.mark_rect().encode(color=color, tooltip=tooltip),
        *(alt.Chart(data([where])).mark_rect(fillOpacity=0, **look).encode(x=x, y=y) for where, look in frames),
        cells.mark_text(fontSize=10, color="#000000").encode(text=alt.Text("value:Q", format=".1f")),
    ]
    return Panel(alt.layer(*layers), 26 * len(values[1]))

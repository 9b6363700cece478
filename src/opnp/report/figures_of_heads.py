"""Figures of a head: how sensitivities are spread, what pruning removes, and how well confidence is calibrated."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from opnp.report.panels import (
    COLORS,
    DASHES,
    GREY,
    VERMILLION,
    Figure,
    Panel,
    Role,
    data,
    diagonal,
    legend_of,
    number,
    percentages,
    steps,
    tips,
)
from opnp.report.results import ReportedRow
from opnp.report.wording import chosen_ratios, fused_members, listed, percent
from opnp.values.figures import ClassifierFigures
from opnp.values.pictures import ModelPictures, NeuronPicture, SensitivityPicture

__all__ = ["calibration_figure", "pruning_figure", "sensitivity_figure"]

_LONG_TAIL = 30
"""Largest count over the median of the filled bins from which on counts are drawn on a logarithmic axis."""


def sensitivity_figure(head: ModelPictures) -> Figure:
    """Return how the sensitivities of a head are spread, and which are removed: the paper's Figure 1."""
    spreads = {"weights": head.weight_sensitivity, "neurons": head.neuron_sensitivity}
    means = {name: percent(spread.mean) for name, spread in spreads.items()}
    parts = [
        f"{name}: {sum(spread.total)}, mean {means[name]} of the maximum, {_removed_text(spread)}"
        for name, spread in spreads.items()
    ]
    return Figure(
        "figure-1-sensitivity",
        "Sensitivity of weights and neurons",
        f"The mean weight has {means['weights']} of the largest sensitivity, the mean neuron {means['neurons']}",
        f"Histograms of the sensitivities, the maximum scaled to 1. {'; '.join(parts)}.",
        tuple(_sensitivities(name, spread) for name, spread in spreads.items()),
    )


def _removed_text(spread: SensitivityPicture) -> str:
    parts = [
        f"{percent(sum(removed) / sum(spread.total))} {which}"
        for which, removed in (("lowest", spread.lowest), ("highest", spread.highest))
        if sum(removed)
    ]
    return f"{listed(parts)} removed" if parts else "none removed"


def _sensitivities(name: str, spread: SensitivityPicture) -> Panel:
    filled = sorted(count for count in spread.total if count > 0)
    is_log = bool(filled) and filled[-1] > _LONG_TAIL * filled[len(filled) // 2]
    counts: Mapping[str, tuple[Role, Sequence[int]]] = {
        "all": ("kept", spread.total),
        "lowest, removed": ("lowest", spread.lowest),
        "highest, removed": ("highest", spread.highest),
    }
    rows = [
        {**row, "part": part}
        for part, (_, values) in counts.items()
        for row in steps(spread.edges, y=values)
        if row["y"]
    ]
    x = alt.X("x:Q", title=f"sensitivity / maximum ({spread.maximum:.3g})").scale(domain=[0, 1])
    y = alt.Y("y:Q", title=f"{name}{', log scale' if is_log else ''}", stack=None)
    y = y.scale(type="log", domainMin=0.5) if is_log else y.scale(domainMin=0)
    color = legend_of("part", {part: role for part, (role, _) in counts.items()})
    tooltip = tips(part="part", y=name, x="from", x2="to")
    bars = alt.Chart(data(rows)).mark_bar(opacity=0.75, binSpacing=0)
    mean = alt.XDatum(number(spread.mean), type="quantitative")
    line = alt.Chart(data([{}])).mark_rule(strokeDash=[6, 3]).encode(x=mean)
    chart = alt.layer(
        bars.encode(x=x, x2="x2:Q", y=y, y2=alt.Y2Datum(0.5 if is_log else 0), color=color, tooltip=tooltip),
        line,
    )
    title = [f"{name}: {_removed_text(spread)}", f"dashed: the mean, {spread.mean:.3f}"]
    return Panel(chart.properties(title=alt.Title(title)), 200)


def pruning_figure(head: ModelPictures) -> Figure:
    """Return weights and neurons of a head before and after pruning: the paper's Figure 2."""
    weights, neurons = head.weights, head.neurons
    gone = 1 - sum(weights.after) / sum(weights.before)
    removed = neurons.removed_lowest + neurons.removed_highest
    title = f"Pruning removes {percent(gone)} of the weights and {removed} of {neurons.neurons} neurons"
    ranks = [rank + 1 for rank in neurons.ranks]
    value = "value of the weight"
    panels = (
        _before_after("weights", "weights", steps(weights.edges, before=weights.before, after=weights.after), value),
        _before_after(
            f"neurons: {neurons.removed_lowest} lowest, {neurons.removed_highest} highest removed",
            "norm of its weights",
            [
                {"x": rank, "before": number(before), "after": number(after)}
                for rank, before, after in zip(ranks, neurons.norm_before, neurons.norm_after, strict=True)
            ],
            "rank by sensitivity",
            neurons,
        ),
        _sensitivity_line(steps(weights.edges, y=[number(each) for each in weights.sensitivity]), value),
        _sensitivity_line(
            [{"x": rank, "y": number(each)} for rank, each in zip(ranks, neurons.sensitivity, strict=True)],
            "rank by sensitivity",
            neurons,
        ),
    )
    return Figure(
        "figure-2-pruning",
        "Weights and neurons before and after pruning",
        title,
        f"{title}: {neurons.removed_lowest} neurons for the smallest and {neurons.removed_highest} for the "
        f"largest sensitivity; {sum(weights.before) - sum(weights.after)} of {sum(weights.before)} weights. Histogram "
        f"of the weights before and after with the sensitivity by value; norm and sensitivity of the neurons in the "
        f"order of their sensitivity.",
        panels,
    )


def _before_after(
    title: str, what: str, rows: Sequence[Mapping[str, Any]], across: str, neurons: NeuronPicture | None = None
) -> Panel:
    long = [{"x": row["x"], "y": row[when], "when": when} for when in ("before", "after") for row in rows]
    x, y = _places(rows, across), alt.Y("y:Q", title=what).scale(domainMin=0)
    color = legend_of("when", {"before": "before", "after": "after"})
    dash = alt.StrokeDash("when:N", title=None).scale(domain=["before", "after"], range=[DASHES["before"], [1, 0]])
    interpolate: Literal["step-after", "linear"] = "step-after" if neurons is None else "linear"
    line = alt.Chart(data(long)).mark_line(interpolate=interpolate, strokeWidth=1.5)
    lines = line.encode(x=x, y=y, color=color, strokeDash=dash, tooltip=tips(when="when", x=across, y=what))
    return Panel(alt.layer(*_removed(neurons), lines).properties(title=title), 180)


def _sensitivity_line(rows: Sequence[Mapping[str, Any]], across: str, neurons: NeuronPicture | None = None) -> Panel:
    x, y = _places(rows, across), alt.Y("y:Q", title="sensitivity / maximum").scale(domainMin=0)
    shown = data(row for row in rows if row["y"] is not None)
    line = alt.Chart(shown).mark_line(color=GREY, strokeWidth=1.5, point={"size": 12, "color": GREY})
    return Panel(alt.layer(*_removed(neurons), line.encode(x=x, y=y, tooltip=tips(x=across, y="sensitivity"))), 110)


def _places(rows: Sequence[Mapping[str, Any]], across: str) -> alt.X:
    return alt.X("x:Q", title=across).scale(domain=[rows[0]["x"], rows[-1]["x"]], nice=False)


def _removed(neurons: NeuronPicture | None) -> list[alt.Chart]:
    """Return bands over the ranks of the neurons that are removed."""
    if neurons is None:
        return []
    ends: tuple[tuple[Role, int, int], ...] = (
        ("lowest", 0, neurons.removed_lowest),
        ("highest", neurons.neurons - neurons.removed_highest, neurons.neurons),
    )
    return [
        alt.Chart(data([{"x": first + 0.5, "x2": past + 0.5}]))
        .mark_rect(color=COLORS[role], opacity=0.25, clip=True)
        .encode(x="x:Q", x2="x2:Q")
        for role, first, past in ends
        if past > first
    ]


def calibration_figure(row: ReportedRow) -> Figure | None:
    """Return confidence and reliability before and after, the paper's Figure 4; None where the record has none.

    A fusion is read off no one head: there is nothing before and after it, and no figure.
    """
    given = {"before": row.before, "after": row.after}
    heads = {name: figures for name, figures in given.items() if figures is not None}
    if row.before is None or fused_members(row.settings) or any(not sum(each.bin_count) for each in heads.values()):
        return None
    change = _change(row.settings)
    parts = [
        f"{name} {change}: ECE {percent(figures.ece)}, accuracy {percent(figures.accuracy)}, mean confidence "
        f"{percent(_mean_confidence(figures))}"
        for name, figures in heads.items()
    ]
    return Figure(
        "figure-4-calibration",
        f"Confidence and calibration before and after {change}",
        _calibration_title(row.before, row.after, change),
        f"Confidence histogram and reliability diagram of the head, {'; '.join(parts)}.",
        (
            *(_confidences(f"{name} {change}: ECE {percent(each.ece)}", each) for name, each in heads.items()),
            *(_reliability(name, each) for name, each in heads.items()),
        ),
        columns=len(heads),
    )


def _change(settings: Mapping[str, object]) -> str:
    """Return what the settings of a row do to the logits."""
    is_shaped = settings.get("shaping") not in (None, "none")
    is_pruned = any(chosen_ratios(settings).values())
    return "shaping and pruning" if is_shaped and is_pruned else "shaping" if is_shaped else "pruning"


def _calibration_title(before: ClassifierFigures, after: ClassifierFigures | None, change: str) -> str:
    if after is None:
        return f"ECE {percent(before.ece)} of the original head"
    texts = percent(before.ece), percent(after.ece)
    ending = "" if " and " in change else "s"
    if texts[0] == texts[1]:
        return f"{change.capitalize()} leave{ending} the calibration error at {texts[0]} (ECE)"
    verb = "lower" if after.ece < before.ece else "raise"
    return f"{change.capitalize()} {verb}{ending} the calibration error (ECE) from {texts[0]} to {texts[1]}"


def _mean_confidence(figures: ClassifierFigures) -> float:
    pairs = zip(figures.bin_count, figures.bin_confidence, strict=True)
    return sum(count * value for count, value in pairs) / sum(figures.bin_count)


def _bins(figures: ClassifierFigures) -> list[dict[str, object]]:
    """Return a row for each bin that is not empty, in per cent."""
    bins, samples = len(figures.bin_count), sum(figures.bin_count)
    rows = steps(
        [100 * place / bins for place in range(bins + 1)],
        count=figures.bin_count,
        share=percentages(count / samples for count in figures.bin_count),
        right=percentages(figures.bin_accuracy),
        confidence=percentages(figures.bin_confidence),
    )
    return [row for row in rows if row["count"]]


_CONFIDENCE = "confidence: largest probability (%)"


def _confidences(title: str, figures: ClassifierFigures) -> Panel:
    x = alt.X("x:Q", title=_CONFIDENCE).scale(domain=[0, 100])
    y = alt.Y("share:Q", title="samples (%)").scale(domain=[0, 100])
    tooltip = tips(count="samples", share="%", x="from", x2="to")
    bars = alt.Chart(data(_bins(figures))).mark_bar(color=GREY, opacity=0.75)
    means = {"accuracy": figures.accuracy, "mean confidence": _mean_confidence(figures)}
    marks = [{"x": number(value, 100), "mean": f"{name} {percent(value)}"} for name, value in means.items()]
    names = [str(each["mean"]) for each in marks]
    dash = alt.StrokeDash("mean:N", title=None).scale(domain=names, range=[[1, 0], [5, 3]])
    rules = alt.Chart(data(marks)).mark_rule(strokeWidth=1.6).encode(x="x:Q", strokeDash=dash)
    chart = alt.layer(bars.encode(x=x, x2="x2:Q", y=y, y2=alt.Y2Datum(0), tooltip=tooltip), rules)
    return Panel(chart.resolve_scale(strokeDash="independent").properties(title=title), 110)


def _reliability(name: str, figures: ClassifierFigures) -> Panel:
    role: Role = "before" if name == "before" else "after"
    rows = _bins(figures)
    x = alt.X("x:Q", title=_CONFIDENCE).scale(domain=[0, 100])
    y = alt.Y("right:Q", title="right answers (%)").scale(domain=[0, 100])
    tooltip = tips(count="samples", confidence="mean confidence, %", right="right answers, %")
    base = alt.Chart(data(rows))
    bars = base.mark_bar(color=COLORS[role], opacity=0.75)
    gap = base.mark_bar(fillOpacity=0.12, color=VERMILLION, stroke=VERMILLION, strokeDash=[3, 2], strokeWidth=1)
    chart = alt.layer(
        bars.encode(x=x, x2="x2:Q", y=y, y2=alt.Y2Datum(0), tooltip=tooltip),
        gap.encode(x=x, x2="x2:Q", y=y, y2="confidence:Q", tooltip=tooltip),
        diagonal(),
    )
    return Panel(chart.properties(title=f"{name}: right answers, and the gap to the mean confidence"), 200)

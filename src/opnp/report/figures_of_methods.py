"""Figures that compare: methods by AUROC and FPR95, the fusion with each single score, and what its members say."""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

import altair as alt

from opnp.report.panels import (
    COLORS,
    GREEN,
    GREY,
    INK,
    SIDES,
    VERMILLION,
    Figure,
    Panel,
    Role,
    data,
    legend_of,
    number,
    tips,
)
from opnp.report.results import ReportedModel
from opnp.report.wording import gallery_title, listed, method_label, percent
from opnp.values.bench import MethodRow, regrets
from opnp.values.pictures import GalleryItem, GallerySet

__all__ = ["members_figure", "ranking_figure", "regret_figure", "regrets_figure"]

_ROW = 17
"""Height of a method in pixels."""
_NAMED = 10
_SHOWN = 16
"""Methods in a text, and in the figure of all models, at most."""
_UNUSUAL, _USUAL = "#E69F00", "#FFFFFF"
"""Ends of the scale of p-values: both light enough for black numbers."""


def ranking_figure(model: ReportedModel) -> Figure | None:
    """Return the methods of a model by their mean AUROC, near and far OOD apart; None where none ran."""
    ran = [row for row in model.best_first if row.mean is not None]
    if not ran:
        return None
    names = [row.method for row in ran]
    aurocs = [percent(row.mean.auroc) for row in ran if row.mean is not None]
    title = f"{names[0]} has the highest mean AUROC, {aurocs[0]}"
    if model.chosen is not None and model.chosen.method in names[1:]:
        title = (
            f"{model.chosen.method} is {names.index(model.chosen.method) + 1} of {len(names)} by mean AUROC; {title}"
        )
    parts = [f"{place}. {name} {auroc}" for place, (name, auroc) in enumerate(zip(names, aurocs, strict=True), 1)]
    more = f", and {len(parts) - _NAMED} more." if len(parts) > _NAMED else "."
    return Figure(
        "ranking",
        "Methods by AUROC and FPR95",
        title,
        f"Methods by mean AUROC over the OOD sets. {title}. {', '.join(parts[:_NAMED])}{more}",
        (_dots(model, ran, "auroc", "higher is better"), _dots(model, ran, "fpr95", "lower is better")),
    )


def _dots(model: ReportedModel, ran: Sequence[MethodRow], metric: Literal["auroc", "fpr95"], words: str) -> Panel:
    means = {side: [getattr(row, side) for row in ran] for side in SIDES}
    rows = [
        {"method": row.method, "value": number(getattr(mean, metric), 100), "side": f"{side} OOD"}
        for side, found in means.items()
        for row, mean in zip(ran, found, strict=True)
        if mean is not None
    ]
    marked: tuple[tuple[MethodRow | None, Role], ...] = ((model.chosen, "chosen"), (model.baseline, "baseline"))
    roles = {row.method: role for row, role in marked if row is not None}
    y = _methods_axis([row.method for row in ran], marked=list(roles))
    x = alt.X("value:Q", title=f"{metric.upper()} (%), {words}").scale(zero=False)
    color = legend_of("side", {"near OOD": "near", "far OOD": "far"})
    shape = alt.Shape("side:N", title=None).scale(domain=["near OOD", "far OOD"], range=["circle", "square"])
    tooltip = tips(method="method", side="side", value=f"{metric.upper()}, %")
    dots = alt.Chart(data(rows)).encode(x=x, y=y)
    bands = [
        alt.Chart(data([{"method": row.method}])).mark_rect(color=COLORS[roles[row.method]], opacity=0.2).encode(y=y)
        for row in ran
        if row.method in roles
    ]
    lines = dots.mark_line(color=GREY, strokeWidth=1, opacity=0.7).encode(detail="method:N")
    points = dots.mark_point(filled=True, size=46, opacity=1).encode(color=color, shape=shape, tooltip=tooltip)
    return Panel(alt.layer(*bands, lines, points), _ROW * len(ran))


def _methods_axis(methods: Sequence[str], *, marked: Sequence[str]) -> alt.Y:
    axis = alt.Axis(labelFontSize=10.5, ticks=False, domain=False, labelOverlap=False)
    if marked:
        is_marked = f"indexof({json.dumps(list(marked))}, datum.value) >= 0"
        axis.labelFontWeight = {"condition": {"test": is_marked, "value": "bold"}, "value": "normal"}
    return alt.Y("method:N", title=None, sort=list(methods), axis=axis)


def regret_figure(model: ReportedModel) -> Figure | None:
    """Return what each published single score has over opnp as it is used, in points of mean AUROC.

    The largest is the regret, where it is above zero. None where there is nothing to compare.
    """
    chosen = model.chosen
    if chosen is None or chosen.mean is None or model.best_single is None:
        return None
    own = chosen.mean.auroc
    singles = sorted(
        ((row.mean.auroc - own, row.method) for row in model.single_scores if row.mean is not None), reverse=True
    )
    better = sum(gap <= 0 for gap, _ in singles)
    best = f"{singles[0][1]} ({percent(own + singles[0][0], 2)})"
    against = f"{len(singles)} published single scores"
    title = f"{chosen.method} is no worse than any of {against}, the best of which is {best}"
    if (regret := singles[0][0]) > 0:
        title = f"{chosen.method} loses {100 * regret:.2f} points of mean AUROC to the best of {against}, {best}"
    rows = [
        {
            "method": method,
            "value": number(gap, 100),
            "auroc": number(own + gap, 100),
            "who": f"better than {chosen.method}" if gap > 0 else "no better",
        }
        for gap, method in singles
    ]
    x = alt.X("value:Q", title=f"mean AUROC less that of {chosen.method}, in points")
    y = _methods_axis([method for _, method in singles], marked=())
    color = legend_of("who", {f"better than {chosen.method}": VERMILLION, "no better": GREEN})
    tooltip = tips(method="method", auroc="mean AUROC, %", value="points")
    bars = alt.Chart(data(rows)).mark_bar(height=0.7 * _ROW).encode(x=x, y=y, color=color, tooltip=tooltip)
    zero = alt.Chart(data([{}])).mark_rule().encode(x=alt.XDatum(0))
    parts = [f"{method} {100 * gap:+.2f}" for gap, method in singles[:_NAMED]]
    return Figure(
        "regret",
        f"Regret of {chosen.method} against each single score",
        title,
        f"{title}. {chosen.method} has {percent(own, 2)}, and no less than {better} of the {len(singles)}. "
        f"Points over it, the best first: {', '.join(parts)}.",
        (Panel(alt.layer(bars, zero), _ROW * len(singles)),),
        columns=1,
    )


def regrets_figure(models: Sequence[ReportedModel]) -> Figure | None:
    """Return the regret of opnp as it is used and of the best single scores on each of several models, and its mean.

    The regret on a model is the mean AUROC of the best published single score there less the row's own, at least 0.
    None for fewer than two models with rows in common.
    """
    judged = [model for model in models if model.best_single is not None]
    chosen = next((model.chosen.method for model in judged if model.chosen is not None), None)
    if len(judged) < 2 or chosen is None:
        return None
    compared = {chosen, *(row.method for model in judged for row in model.single_scores)}
    complete = {
        method: {name: 100 * value for name, value in each.items()}
        for method, each in regrets(judged).items()
        if method in compared
    }
    order = list(complete)
    singles = [method for method in order if method != chosen]
    if chosen not in complete or not singles:
        return None
    shown = order[:_SHOWN] if chosen in order[:_SHOWN] else [*order[: _SHOWN - 1], chosen]
    mean = {method: fmean(complete[method].values()) for method in order}
    worst = {method: max(complete[method].values()) for method in (chosen, singles[0])}
    title = (
        f"Mean regret over {len(judged)} models: {chosen} {mean[chosen]:.2f} points of AUROC, {singles[0]}, the best "
        f"of {len(singles)} single scores, {mean[singles[0]]:.2f}"
    )
    rows = [
        {"method": method, "value": number(value), "model": name}
        for method in shown
        for name, value in complete[method].items()
    ]
    means = [{"method": method, "value": number(mean[method]), "what": "mean over the models"} for method in shown]
    x = alt.X("value:Q", title="regret: points of mean AUROC below the best single score of a model").scale(
        padding=8, nice=False
    )
    y = _methods_axis(shown, marked=[chosen])
    tooltip = tips(method="method", model="model", value="points")
    band = alt.Chart(data([{"method": chosen}])).mark_rect(color=COLORS["chosen"], opacity=0.2).encode(y=y)
    dots = alt.Chart(data(rows)).mark_point(size=40, color=INK, opacity=0.7).encode(x=x, y=y, tooltip=tooltip)
    ticks = alt.Chart(data(means)).mark_tick(thickness=3, size=0.8 * _ROW)
    color = legend_of("what", {"mean over the models": VERMILLION})
    mean_tooltip = tips(method="method", what="figure", value="points")
    return Figure(
        "regrets",
        "Regret on each model",
        title,
        f"{title}. At worst: {listed([f'{method} {value:.2f}' for method, value in worst.items()])}. Means: "
        f"{', '.join(f'{method} {mean[method]:.2f}' for method in shown[:_NAMED])}.",
        (Panel(alt.layer(band, dots, ticks.encode(x=x, y=y, color=color, tooltip=mean_tooltip)), _ROW * len(shown)),),
        columns=1,
    )


def members_figure(galleries: Sequence[GallerySet], *, method: str) -> Figure | None:
    """Return what each member of a fusion says of the inputs of the galleries; None where that is not recorded.

    A cell has the p-value of the member by itself as its colour, and its share of the fused score as its number.
    """
    sets = [each for each in galleries if any(item.members for item in each.items)]
    items = [item for each in sets for item in each.items]
    if not items:
        return None
    flagged = [item for item in items if item.is_ood]
    name, share = _leading(flagged or items)
    words = f"{len(flagged)} flagged inputs" if flagged else f"{len(items)} inputs"
    title = f"{name} has the largest share of the score of the {words} shown, {percent(share, 0)} on average"
    parts = [
        f"{gallery_title(each.set)}: {member} {percent(mean, 0)}"
        for each in sets
        for member, mean in [_leading(each.items)]
    ]
    least = min(member.p_value for item in items for member in item.members)
    return Figure(
        "members",
        f"Why {method_label(method)} scores the inputs of the gallery as it does",
        title,
        f"p-values and shares of the members, input by input. {title}. Largest mean share: {'; '.join(parts)}.",
        tuple(_member_cells(each, least) for each in sets),
    )


def _leading(items: Sequence[GalleryItem]) -> tuple[str, float]:
    """Return the member with the largest mean share over some inputs, and that share."""
    shares: dict[str, list[float]] = {}
    for item in items:
        for member in item.members:
            shares.setdefault(member.name, []).append(member.share)
    return max(((name, fmean(values)) for name, values in shares.items()), key=lambda each: each[1])


def _member_cells(gallery: GallerySet, least: float) -> Panel:
    rows = [
        {
            "input": f"{place}. {item.name}",
            "member": member.name,
            "p": number(member.p_value),
            "share": number(member.share, 100),
            "verdict": {True: "flagged", False: "kept", None: "not calibrated"}[item.is_ood],
        }
        for place, item in enumerate(gallery.items, 1)
        for member in item.members
    ]
    inputs = list(dict.fromkeys(str(row["input"]) for row in rows))
    names = list(dict.fromkeys(str(row["member"]) for row in rows))
    x_axis = alt.Axis(labelAngle=-40, ticks=False, domain=False, labelOverlap=False)
    y_axis = alt.Axis(labelLimit=110, ticks=False, domain=False, labelOverlap=False)
    x = alt.X("member:N", title=None, sort=names, axis=x_axis)
    y = alt.Y("input:N", title=None, sort=inputs, axis=y_axis)
    scale = alt.Scale(type="log", domain=[min(least, 0.1), 1], range=[_UNUSUAL, _USUAL], interpolate="rgb")
    color = alt.Color("p:Q", title="p-value", scale=scale).legend(title="p-value", gradientLength=160, tickCount=3)
    tooltip = tips(input="input", verdict="verdict", member="member", p="p-value", share="share of the score, %")
    cells = alt.Chart(data(rows)).encode(x=x, y=y)
    text = cells.mark_text(fontSize=10, color="#000000").encode(text=alt.Text("share:Q", format=".0f"))
    chart = alt.layer(cells.mark_rect(stroke=GREY, strokeWidth=0.3).encode(color=color, tooltip=tooltip), text)
    title = [gallery_title(gallery.set), "numbers: share of the score, %"]
    return Panel(chart.properties(title=alt.Title(title)), 20 * len(inputs))

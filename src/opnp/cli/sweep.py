"""``opnp sweep``: curves over every setting of the paper's method, on the cached features of some models."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.options import JsonFlag, NeuronReadingName, ScopeName
from opnp.cli.out_checks import require_out_folder
from opnp.cli.output import print_table, progress_bar
from opnp.cli.report_option import ReportFile, require_report, tell_report

if TYPE_CHECKING:
    from opnp.values.figures import DetectionFigures
    from opnp.values.sweep import SweepCurve, SweepPoint, SweepRecord, SweptModel

__all__ = ["sweep"]


def sweep(
    *,
    features: Annotated[
        Path,
        typer.Option(
            help="Folder with head, train, test and ood_*, each .safetensors; or a folder of such folders, one a model."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and sweep.md.")],
    curves: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary, separated by commas: parts, paper, ratios, pairs, temperature, samples, scores, or "
            "names of curves such as w_min-class. Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first draw of training samples.")] = 0,
    rho_w_min: Annotated[
        float, typer.Option(help="Base: ratio at which temperature, training samples and scores are varied.")
    ] = 0.3,
    rho_w_max: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.0,
    rho_o_min: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.1,
    rho_o_max: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.0,
    scope: Annotated[ScopeName, typer.Option(help="Ranking of the weights at the base.")] = ScopeName.layer,
    neuron: Annotated[
        NeuronReadingName, typer.Option(help="Reading of the neuron sensitivity at the base.")
    ] = NeuronReadingName.gradient,
    near: Annotated[str, typer.Option(help="OOD sets that are near, separated by commas. Default: none.")] = "",
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Show what each setting of the paper's method changes, on cached features.

    Curves over ratios, scope, reading, temperature, training samples and score. Every point is fitted on train and
    judged by test and ood_*, so that the best is known with hindsight only.

    `OPNP()`, the fusion, takes nothing from it. `opnp tune` chooses the paper's ratios on OOD validation data, and
    measures the gain on samples that it did not choose by.
    """
    from opnp.bench import run_sweep
    from opnp.detector import Ratios

    require_report(report, made=out)
    require_out_folder(out)
    record = run_sweep(
        features,
        out,
        curves=None if curves is None else [name for text in curves for name in _listed(text)],
        seed=seed,
        base=Ratios(w_min=rho_w_min, w_max=rho_w_max, o_min=rho_o_min, o_max=rho_o_max),
        scope=scope.value,
        neuron=neuron.value,
        near=_listed(near),
        progress=progress_bar("sweeping", is_quiet=json),
    )
    if json:
        tell_report(out, report, is_quiet=True)
        typer.echo(record.to_json())
        return
    for model in record.models:
        _print_model(record, model)
    typer.echo("FPR95 / AUROC in %, ID positive; the best by AUROC, known with hindsight only. Draws are averaged.")
    typer.echo(f"Every point is in {out}: start with sweep.md.")
    tell_report(out, report, is_quiet=False)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_model(record: "SweepRecord", model: "SweptModel") -> None:
    energy = [cell for side in ("far", "near") for cell in (_pair(getattr(model.energy, side)), "")]
    rows = [["Energy (original head)", "", *energy]]
    for curve in record.curves:
        points = model.curve(curve.name)
        ran = [point for point in points if point.status == "ok"]
        rows.append(
            [curve.name, str(len(ran)), *(cell for side in ("far", "near") for cell in _best(curve, ran, side))]
        )
        failed = len(points) - len(ran)
        if failed:
            typer.echo(f"{model.model}: {failed} points of {curve.name} did not run; sweep.md says why.", err=True)
    print_table(
        f"{model.model}: {model.classes} classes, {model.features} features",
        ["curve", "points", "far OOD", "at", "near OOD", "at"],
        rows,
    )


def _best(curve: "SweepCurve", points: "Sequence[SweepPoint]", side: str) -> tuple[str, str]:
    """Return figures and place of the largest AUROC on one side, means over draws; empty where there is none."""
    from opnp.values.figures import mean_figures

    found: list[tuple[DetectionFigures, str]] = []
    for labels, draws in groupby(points, key=lambda point: point.labels(curve.varies)):
        figures = mean_figures([each for each in (getattr(point, side) for point in draws) if each is not None])
        if figures is not None:
            found.append((figures, ", ".join(labels)))
    if not found:
        return "", ""
    best, place = max(found, key=lambda each: each[0].auroc)
    return _pair(best), place


def _pair(figures: "DetectionFigures | None") -> str:
    return "" if figures is None else f"{100 * figures.fpr95:.2f} / {100 * figures.auroc:.2f}"

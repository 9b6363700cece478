"""``opnp report`` and ``opnp demo``: results as one page for people, and results on data of this machine."""

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from opnp.cli.options import JsonFlag, ReportFile, require_out_folder, require_report, tell_report
from opnp.cli.output import print_json, print_table

if TYPE_CHECKING:
    from opnp.values.bench import DemoRecord

_SETS = {"test": "digit 0 to 6", "ood_near": "digit 7 to 9", "ood_far": "patch of a photograph"}
"""The demo's sets in words."""


def report(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS_DIR", help="Folder of opnp bench, opnp sweep or opnp demo."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="HTML file to write; it needs no network.")] = Path("report.html"),
    keep: Annotated[
        float, typer.Option(help="Share of ID kept at the thresholds that are shown first, 0.5 to 0.999.")
    ] = 0.95,
    figures: Annotated[
        Path | None, typer.Option(help="Folder to write the figures into as well, as SVG, PNG and PDF.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write results as one page: verdict, methods, thresholds, figures, gallery, and what is needed to repeat them."""
    from opnp.report import write_figures, write_report
    from opnp.report.figures import require_figures_folder

    if figures is not None:
        require_figures_folder(figures)
    path = write_report(results, out, keep=keep)
    drawn = [] if figures is None else write_figures(results, figures, keep=keep)
    if json:
        facts = {"out": str(path), "bytes": path.stat().st_size, "figures": [str(each) for each in drawn]}
        print_json(facts)
        return
    typer.echo(f"Report: {path}, {path.stat().st_size / 1e6:.1f} MB.")
    if drawn:
        typer.echo(f"{len(drawn)} figures are in {figures}.")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for detector, scores and results.")] = Path("opnp-demo"),
    seed: Annotated[int, typer.Option(help="Seed of split, training and patches.")] = 0,
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Train a small CNN on the digits 0 to 6, fit detectors, and ask them about digits 7 to 9 and photographs."""
    from opnp.bench import run_demo

    require_report(report, made=out)
    require_out_folder(out)
    with Console(stderr=True, quiet=json).status("training a small CNN, fitting, scoring"):
        record = run_demo(out, seed=seed)
    if json:
        print_json({**loads(record.to_json()), "out": str(out)})
    else:
        _print_record(record)
        typer.echo(
            f"\nDetector, scores, features and results are in {out}. Try:\n"
            f"  opnp inspect {out}/detector.safetensors\n"
            f"  opnp fit --features {out}/train.safetensors --head {out}/head.safetensors"
            f" --validation {out}/validation.safetensors --out {out}/mine.safetensors\n"
            f"  opnp score {out}/mine.safetensors --features {out}/ood_far.safetensors",
        )
    tell_report(out, report, is_quiet=json)


def _print_record(record: "DemoRecord") -> None:
    places = list(record.methods[0].detection)
    columns = ["method", *(f"{place} {metric}" for place in places for metric in ("FPR95", "AUROC"))]
    rows = [
        [
            result.method,
            *(
                f"{100 * value:.2f}"
                for place in places
                for value in (result.detection[place].fpr95, result.detection[place].auroc)
            ),
            f"{100 * result.accuracy:.2f}",
            f"{100 * result.pruned_accuracy:.2f}",
            f"{100 * result.flagged_id:.2f}",
        ]
        for result in record.methods
    ]
    print_table(record.title, [*columns, "accuracy", "pruned head", "ID flagged"], rows)
    counts = record.counts
    typer.echo(
        f"All in %. FPR95: share of OOD kept where 95 % of ID is (ID positive). Accuracy is that of the answers "
        f"given, by the original head.\nVerdicts are calibrated on {counts['validation']} held-out ID images to flag "
        f"at most {100 * (1 - record.keep):.0f} % of ID; judged on {counts['test']} others.\n",
    )
    inputs = [
        [
            _SETS[each.set],
            f"class {each.predicted_class}",
            f"{each.p_value:.3f}",
            "OOD: do not answer" if each.is_ood else "known: answer",
            f"{each.member}, {100 * each.share:.0f} % of the score" if each.is_ood else "",
        ]
        for each in record.inputs
    ]
    print_table(
        "Three inputs, the median of each set, as OPNP() sees them",
        ["input", "the model says", "p-value", "verdict", "mostly because of"],
        inputs,
    )

"""``opnp demo``: the whole job on data that is already on the machine."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from opnp.cli.options import JsonFlag
from opnp.cli.out_checks import require_out_folder
from opnp.cli.output import print_table
from opnp.cli.report_option import ReportFile, require_report, tell_report

if TYPE_CHECKING:
    from opnp.values.bench import DemoRecord

__all__ = ["demo"]


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
        tell_report(out, report, is_quiet=True)
        typer.echo(json_module.dumps(json_module.loads(record.to_json()) | {"out": str(out)}, indent=2, sort_keys=True))
        return
    _print_record(record)
    typer.echo(
        f"Detector, scores, features and results are in {out}. Try:\n"
        f"  opnp inspect {out}/detector.safetensors\n"
        f"  opnp fit --features {out}/train.safetensors --head {out}/head.safetensors"
        f" --validation {out}/validation.safetensors --out {out}/mine.safetensors\n"
        f"  opnp score --detector {out}/mine.safetensors --features {out}/ood_far.safetensors --out {out}/far.csv",
    )
    tell_report(out, report, is_quiet=False)


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
        f"at most {100 * (1 - record.keep):.0f} % of ID; judged on {counts['test']} others.",
    )

"""``opnp report``: results as one page for people, and as figures for papers."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import JsonFlag
from opnp.cli.output import print_json

__all__ = ["report"]


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
    from opnp.report.writing import require_figures_folder

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

"""Every figure that a results folder has data for, under stable names, and as files for papers."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from altair.utils.schemapi import debug_mode

from opnp.errors import DataFileError, OptionError, require_installed
from opnp.files import write_atomically
from opnp.report.explorer import ordered_sets
from opnp.report.figures_of_heads import calibration_figure, pruning_figure, sensitivity_figure
from opnp.report.figures_of_methods import members_figure, ranking_figure, regret_figure, regrets_figure
from opnp.report.figures_of_scores import curves_figure, scores_figure
from opnp.report.figures_of_sweeps import grid_figure, ratios_figure
from opnp.report.panels import Figure
from opnp.report.results import ReportedModel, Results, fitting_records, read_results

__all__ = ["FORMATS", "figure_bytes", "named_figures", "require_figures_folder", "write_figures"]

FORMATS = ("svg", "png", "pdf")
"""Formats of files."""
_PIXELS = 2
"""Dots of a PNG for each pixel of a figure: 200 an inch at the width of two columns of a paper."""


def named_figures(results: Results, *, keep: float = 0.95) -> tuple[Figure, ...]:
    """Return every figure that the folder has data for: those of all models, then model after model.

    Args:
        results: Records of a results folder; its scores are read.
        keep: Share of ID to keep at the thresholds that are drawn, in (0, 1).

    Returns:
        The figures, of a model in the order of the paper, then curves, heat maps, ranking, regret and members.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        DataFileError: If the file of scores cannot be read.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    with debug_mode(arg=False):  # checks of each part that is built take most of the time: tests check the whole
        return tuple(_named_figures(results, keep))


def _named_figures(results: Results, keep: float) -> Iterator[Figure]:
    models = {model.model: model for model in results.models}
    used: set[str] = set()
    if (common := regrets_figure(results.models)) is not None:
        yield replace(common, name=_unique(common.stem, used))
    for name in results.model_names:
        file_part = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        for figure in _figures(results, name, models.get(name), keep):
            yield replace(figure, model=name, name=_unique(f"{figure.stem}-{file_part}", used))


def _figures(results: Results, name: str, model: ReportedModel | None, keep: float) -> Iterator[Figure]:
    """Yield every figure of a model, in their order."""
    chosen = None if model is None else model.chosen
    settings = None if chosen is None else chosen.settings
    head, swept = results.pictures_of(name), results.swept(name)
    found: list[Figure | None] = [] if head is None else [sensitivity_figure(head), pruning_figure(head)]
    found += [] if swept is None else [ratios_figure(swept, settings=settings)]
    found += [] if chosen is None else [calibration_figure(chosen)]
    scores = {} if model is None else results.scores_to_compare(model)
    if model is not None and scores and ordered_sets(scores, model.nearness):
        found += [scores_figure(scores, model.nearness, keep=keep), curves_figure(scores, model.nearness, keep=keep)]
    if swept is not None and results.sweep is not None:
        found += [grid_figure(swept, curve, settings=settings) for curve in results.sweep.curves]
    found += [] if model is None else [ranking_figure(model), regret_figure(model)]
    found += [] if head is None else [members_figure(head.gallery, method=head.method)]
    yield from (figure for figure in found if figure is not None)


def _unique(name: str, used: set[str]) -> str:
    """Return the name, with a number where another model's figure has it already."""
    found, number = name, 1
    while found.lower() in used:
        number += 1
        found = f"{name}-{number}"
    used.add(found.lower())
    return found


def require_figures_folder(out_folder: str | os.PathLike[str]) -> Path:
    """Return the folder for figures, which need not exist yet; nothing is written.

    Raises:
        MissingExtraError: If vl-convert-python is not installed.
        DataFileError: If `out_folder` is a file, or lies in one.

    """
    require_installed("Files of figures need", "vl_convert", extra="report")
    folder = Path(out_folder)
    for each in (folder, *folder.parents):
        if each.exists() and not each.is_dir():
            raise DataFileError(f"{each} is a file: name a folder for the figures.")
    return folder


def write_figures(
    results_folder: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
    keep: float = 0.95,
) -> list[Path]:
    """Write every figure that a results folder has data for; return the paths.

    Args:
        results_folder: Folder of `opnp bench`, `opnp sweep`, `opnp fit` or `opnp demo`.
        out_folder: Where to write; made if it does not exist.
        formats: Some of ``svg``, ``png`` (200 dots an inch at the width of a page) and ``pdf``.
        keep: Share of ID to keep at the thresholds that are drawn, in (0, 1).

    Returns:
        Paths such as ``figure-5-scores-densenet.svg``, in the order of the paper, model after model.

    Raises:
        MissingExtraError: If vl-convert-python, or pyarrow for scores in Parquet, is not installed.
        MissingFileError: If there is no such results folder.
        DataFileError: If it holds no results, a file in it cannot be read, or `out_folder` is a file.
        OptionError: If a format is unknown, or `keep` lies outside (0, 1).

    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or isinstance(formats, str):
        raise OptionError(f"`formats` must be some of {', '.join(map(repr, FORMATS))}, got {formats!r}.")
    if not 0 < keep < 1:
        raise OptionError(f"`keep` must lie between 0 and 1, got {keep!r}. Give 0.95 for 95 %.")
    folder = require_figures_folder(out_folder)
    results = read_results(results_folder)
    paths = []
    with fitting_records(results_folder):
        figures = named_figures(results, keep=keep)
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            for ending in formats:
                paths.append(folder / f"{figure.name}.{ending}")
                write_atomically(paths[-1], figure_bytes(figure, ending))
    return paths


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Return a figure as a file for paper, in one of `FORMATS`; equal figures give equal bytes of SVG and PNG."""
    import vl_convert

    if ending == "svg":
        text: str = vl_convert.vegalite_to_svg(figure.paper)
        return text.encode()
    if ending == "png":
        png: bytes = vl_convert.vegalite_to_png(figure.paper, scale=_PIXELS)
        return png
    pdf: bytes = vl_convert.vegalite_to_pdf(figure.paper)
    return pdf

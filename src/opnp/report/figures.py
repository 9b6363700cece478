"""Every figure that a results folder has data for, under stable names, and as files for papers."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opnp.errors import DataFileError, OptionError
from opnp.report.figures_print import FORMATS, print_figure, require_matplotlib, write_figure
from opnp.report.record_series import (
    Series,
    calibration_series,
    pruning_series,
    ranking_series,
    sensitivity_series,
)
from opnp.report.results import ReportedModel, Results, fitting_records, read_results
from opnp.report.score_series import curve_series, ordered_sets, score_series
from opnp.report.sweep_series import grid_series, ratio_series

__all__ = ["NamedFigure", "named_figures", "require_figures_folder", "write_figures"]


@dataclass(frozen=True, slots=True)
class NamedFigure:
    """A figure.

    Attributes:
        name: Its name, unique in a folder of results and fit for a file, such as ``figure-5-scores-densenet``.
        heading: What it shows, in words.
        model: Name of the model.
        series: What is drawn; `title` is the finding, `alt` the finding with its numbers.

    """

    name: str
    heading: str
    model: str
    series: Series


def named_figures(results: Results, *, keep: float = 0.95) -> tuple[NamedFigure, ...]:
    """Return every figure that the folder has data for, model after model.

    Args:
        results: Records of a results folder; its scores are read.
        keep: Share of ID to keep at the thresholds that are drawn, in (0, 1).

    Returns:
        The figures, in the order of the paper, then ROC and precision-recall curves, heat maps and the ranking.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        DataFileError: If the file of scores cannot be read.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    models = {model.model: model for model in results.models}
    figures: list[NamedFigure] = []
    used: set[str] = set()
    for name in results.model_names:
        for stem, heading, series in _figures(results, name, models.get(name), keep):
            file_part = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
            figures.append(NamedFigure(_unique(f"{stem}-{file_part}", used), heading, name, series))
    return tuple(figures)


def _figures(
    results: Results, name: str, model: ReportedModel | None, keep: float
) -> Iterator[tuple[str, str, Series]]:
    """Yield stem, heading and content of every figure of a model, in their order."""
    settings = None if model is None or model.chosen is None else model.row(model.chosen).settings
    swept = results.swept(name)
    if (pictures := results.pictures_of(name)) is not None:
        yield "figure-1-sensitivity", "Sensitivity of weights and neurons", sensitivity_series(pictures)
        yield "figure-2-pruning", "Weights and neurons before and after pruning", pruning_series(pictures)
    if swept is not None and (ratios := ratio_series(swept, settings=settings)) is not None:
        yield "figure-3-ratios", "FPR95 and AUROC against each ratio", ratios
    if model is not None:
        yield from _score_figures(results, model, keep)
    if swept is not None and results.sweep is not None:
        for curve in results.sweep.curves:
            if (grid := grid_series(swept, curve, settings=settings)) is not None:
                yield f"heat-map-{curve.name}", f"Heat map over rho_{grid.x} and rho_{grid.y}", grid
    if model is not None and (ranking := ranking_series(model)) is not None:
        yield "ranking", "Methods by AUROC and FPR95", ranking


def _score_figures(results: Results, model: ReportedModel, keep: float) -> Iterator[tuple[str, str, Series]]:
    chosen = None if model.chosen is None else calibration_series(model.model, model.row(model.chosen))
    if chosen is not None:
        yield "figure-4-calibration", f"Confidence and calibration before and after {chosen.change}", chosen
    scores = results.scores_to_compare(model)
    if scores and ordered_sets(scores, model.nearness):
        yield "figure-5-scores", "Scores of ID and OOD", score_series(model.model, scores, model.nearness, keep=keep)
        yield "curves", "ROC and precision-recall curves", curve_series(model.model, scores, model.nearness)


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
        MissingExtraError: If matplotlib is not installed.
        DataFileError: If `out_folder` is a file, or lies in one.

    """
    require_matplotlib()
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
        formats: Some of ``svg`` (text as paths), ``png`` (200 dots an inch) and ``pdf``.
        keep: Share of ID to keep at the thresholds that are drawn, in (0, 1).

    Returns:
        Paths such as ``figure-5-scores-densenet.svg``, in the order of the paper, model after model.

    Raises:
        MissingExtraError: If matplotlib, or pyarrow for scores in Parquet, is not installed.
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
        for named in figures:
            figure = print_figure(named.series)
            for ending in formats:
                paths.append(folder / f"{named.name}.{ending}")
                write_figure(figure, paths[-1])
    return paths

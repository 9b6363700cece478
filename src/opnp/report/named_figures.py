"""Every figure that a results folder has data for, under stable names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from opnp.report.results import ReportedModel, Results
from opnp.report.series import (
    CalibrationSeries,
    CurveSeries,
    GridSeries,
    PruningSeries,
    RankingSeries,
    RatioSeries,
    ScoreSeries,
    SensitivitySeries,
    calibration_series,
    curve_series,
    grid_series,
    pruning_series,
    ranking_series,
    ratio_series,
    score_series,
    sensitivity_series,
)
from opnp.report.series.score_series import ordered_sets

__all__ = ["NamedFigure", "Series", "named_figures", "scores_to_compare"]

Series = (
    CalibrationSeries
    | CurveSeries
    | GridSeries
    | PruningSeries
    | RankingSeries
    | RatioSeries
    | ScoreSeries
    | SensitivitySeries
)
"""What is drawn."""

_Found = tuple[str, str, Series]


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
    swept = () if results.sweep is None else (model.model for model in results.sweep.models)
    pictured = () if models or results.pictures is None else (model.model for model in results.pictures.models)
    figures: list[NamedFigure] = []
    used: set[str] = set()
    for name in dict.fromkeys(chain(models, swept, pictured)):
        for stem, heading, series in _figures(results, name, models.get(name), keep):
            figures.append(NamedFigure(_unique(f"{stem}-{_file_part(name)}", used), heading, name, series))
    return tuple(figures)


def scores_to_compare(results: Results, model: ReportedModel) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """Return scores by method and set: those of the energy, then those of opnp as it is used, as far as there are any.

    Args:
        results: Records of a results folder.
        model: One of its models.

    Returns:
        Scores by name of the row and by set; empty where the folder has none.

    Raises:
        DataFileError: If the file of scores cannot be read.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    methods = [method for method in (model.baseline, model.chosen) if method is not None]
    found = {method: results.scores(model.model, method) for method in methods}
    return {method: scores for method, scores in found.items() if scores is not None and "test" in scores}


def _figures(results: Results, name: str, model: ReportedModel | None, keep: float) -> Iterator[_Found]:
    """Return stem, heading and content of every figure of a model, in their order."""
    settings = None if model is None or model.chosen is None else model.row(model.chosen).settings
    yield from _head_figures(results, name)
    yield from _ratio_figures(results, name, settings)
    if model is not None:
        yield from _score_figures(results, model, keep)
    yield from _grid_figures(results, name, settings)
    if model is not None and (ranking := ranking_series(model)) is not None:
        yield "ranking", "Methods by AUROC and FPR95", ranking


def _head_figures(results: Results, name: str) -> Iterator[_Found]:
    if (pictures := results.pictures_of(name)) is not None:
        yield "figure-1-sensitivity", "Sensitivity of weights and neurons", sensitivity_series(pictures)
        yield "figure-2-pruning", "Weights and neurons before and after pruning", pruning_series(pictures)


def _ratio_figures(results: Results, name: str, settings: Mapping[str, object] | None) -> Iterator[_Found]:
    swept = results.swept(name)
    if swept is not None and (ratios := ratio_series(swept, settings=settings)) is not None:
        yield "figure-3-ratios", "FPR95 and AUROC against each ratio", ratios


def _score_figures(results: Results, model: ReportedModel, keep: float) -> Iterator[_Found]:
    chosen = None if model.chosen is None else calibration_series(model.model, model.row(model.chosen))
    if chosen is not None:
        yield "figure-4-calibration", f"Confidence and calibration before and after {chosen.change}", chosen
    scores = scores_to_compare(results, model)
    if scores and ordered_sets(scores, model.nearness):
        yield "figure-5-scores", "Scores of ID and OOD", score_series(model.model, scores, model.nearness, keep=keep)
        yield "curves", "ROC and precision-recall curves", curve_series(model.model, scores, model.nearness)


def _grid_figures(results: Results, name: str, settings: Mapping[str, object] | None) -> Iterator[_Found]:
    swept = results.swept(name)
    for curve in () if results.sweep is None else results.sweep.curves:
        if swept is not None and (grid := grid_series(swept, curve, settings=settings)) is not None:
            yield f"heat-map-{curve.name}", f"Heat map over rho_{grid.x} and rho_{grid.y}", grid


def _file_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _unique(name: str, used: set[str]) -> str:
    """Return the name, with a number where another model's figure has it already."""
    found, number = name, 1
    while found.lower() in used:
        number += 1
        found = f"{name}-{number}"
    used.add(found.lower())
    return found

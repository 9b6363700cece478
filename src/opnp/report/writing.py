"""Figures of a results folder as files for papers."""

import os
from collections.abc import Sequence
from pathlib import Path

from opnp.errors import DataFileError, OptionError
from opnp.report.figures.print_figure import print_figure
from opnp.report.figures.print_style import FORMATS, require_matplotlib, write_figure
from opnp.report.fitting_records import fitting_records
from opnp.report.named_figures import named_figures
from opnp.report.results import read_results

__all__ = ["require_figures_folder", "write_figures"]


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

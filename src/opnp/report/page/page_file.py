"""The page of a results folder as a file."""

import os
from pathlib import Path

from opnp.errors import DataFileError
from opnp.files import write_atomically
from opnp.report.fitting_records import fitting_records
from opnp.report.page.explorer import require_keep
from opnp.report.page.rendering import page_html
from opnp.report.page.sections import page_content
from opnp.report.results import read_results

__all__ = ["write_report"]


def write_report(
    results_folder: str | os.PathLike[str], out_html: str | os.PathLike[str], *, keep: float = 0.95
) -> Path:
    """Write what a results folder holds as one HTML file that needs no network; return its path.

    Args:
        results_folder: Folder of `opnp bench`, `opnp sweep`, `opnp fit` or `opnp demo`.
        out_html: File to write; an existing one is replaced. The same results give the same bytes.
        keep: Share of ID to keep at the thresholds that are shown first, in [0.5, 0.999].

    Returns:
        The path of the file.

    Raises:
        MissingExtraError: If jinja2 or plotly, or pyarrow for scores in Parquet, is not installed.
        MissingFileError: If there is no such results folder, or no folder to write into.
        DataFileError: If it holds no results, a file in it cannot be read, or `out_html` is a folder.
        OptionError: If `keep` lies outside [0.5, 0.999].

    """
    require_keep(keep)
    path = Path(out_html)
    if path.is_dir():
        raise DataFileError(f"{path} is a folder: name a file for the report, such as {path / 'report.html'}.")
    results = read_results(results_folder)
    with fitting_records(results_folder):
        html = page_html(page_content(results, keep=keep)).encode()
    write_atomically(path, html)
    return path

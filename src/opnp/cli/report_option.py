"""The option ``--report`` of commands that leave results: the same page that ``opnp report`` makes of a folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.out_checks import require_out_file
from opnp.errors import MissingExtraError

__all__ = ["ReportFile", "require_report", "tell_report"]

_PACKAGES = ("jinja2", "matplotlib", "plotly", "pyarrow")

ReportFile = Annotated[
    Path | None, typer.Option("--report", help="HTML page with tables and figures of the results to write as well.")
]


def require_report(path: Path | None, *, made: Path | None = None) -> None:
    """Raise, before anything is computed, what would keep a report from being written.

    Args:
        path: The report, or None where none is asked for.
        made: Folder that the command makes if it does not exist yet; a report may be written there.

    Raises:
        MissingExtraError: If a package that reports need is not installed.
        MissingFileError: If its folder does not exist, or it is a folder itself.
        OSError: If no file can be made there.

    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if path is not None and missing:
        raise MissingExtraError(
            f"`--report` needs {' and '.join(missing)}, not installed: `pip install 'opnp[report]'`.",
        )
    if path is not None and (path.parent.is_dir() or made is None or path.parent.absolute() != made.absolute()):
        require_out_file(path)


def tell_report(folder: Path, path: Path | None, *, is_quiet: bool) -> None:
    """Write the report of a folder of results, if one is asked for, and say where it is."""
    if path is None:
        return
    from opnp.report import write_report

    write_report(folder, path)
    if not is_quiet:
        typer.echo(f"Report: {path}")

"""The option ``--report`` of commands that leave results: the same page that ``opnp report`` makes of a folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from opnp.errors import MissingExtraError

__all__ = ["ReportFile", "require_report", "tell_report"]

_PACKAGES = ("jinja2", "matplotlib", "plotly", "pyarrow")

ReportFile = Annotated[
    Path | None, typer.Option("--report", help="HTML page with tables and figures of the results to write as well.")
]


def require_report(path: Path | None) -> None:
    """Raise, before anything is computed, what would keep a report from being written.

    Raises:
        MissingExtraError: If a package that reports need is not installed.

    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if path is not None and missing:
        raise MissingExtraError(
            f"`--report` needs {' and '.join(missing)}, not installed: `pip install 'opnp[report]'`.",
        )


def tell_report(folder: Path, path: Path | None, *, is_quiet: bool) -> None:
    """Write the report of a folder of results, if one is asked for, and say where it is."""
    if path is None:
        return
    from opnp.report import write_report

    write_report(folder, path)
    if not is_quiet:
        typer.echo(f"Report: {path}")

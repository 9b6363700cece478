"""The commands together, and what becomes of their errors: the message alone, and exit code 2."""

import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from opnp.cli.bench import bench
from opnp.cli.cache import cache
from opnp.cli.demo import demo
from opnp.cli.fit import fit
from opnp.cli.inspect import inspect
from opnp.cli.score import score
from opnp.cli.sweep import sweep
from opnp.cli.tune import tune
from opnp.errors import OpnpError

__all__ = ["app", "main"]

app = typer.Typer(
    name="opnp",
    help="Turn a trained classifier into an out-of-distribution detector by pruning its last layer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, fit, score, inspect, tune, cache, bench, sweep):
    app.command()(command)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"opnp {version('opnp')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Turn a trained classifier into an out-of-distribution detector by pruning its last layer."""


def main() -> None:
    """Run the command line; errors that opnp or the file system raises become one message and exit code 2."""
    warnings.showwarning = _shown
    try:
        app(prog_name="opnp")
    except (OpnpError, OSError) as error:
        typer.echo(f"{_speaker()}: {error}", err=True)
        sys.exit(2)


def _shown(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; of several processes the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"opnp: warning: {message}", err=True)


def _speaker() -> str:
    """Return who brings a message: opnp, or opnp as one of the processes that torchrun started."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    return "opnp" if rank is None or world == "1" else f"opnp: rank {rank} of {world}"

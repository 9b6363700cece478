"""The commands together, and what becomes of their errors: the message alone, and exit code 2."""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import Annotated

import typer

from opnp import __version__
from opnp.cli.lazy_group import LazyGroup
from opnp.cli.stopping import Stopped, stopped_by_signals
from opnp.errors import OpnpError

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "demo": "Train a small CNN on the digits 0 to 6, fit detectors, and ask them about digits 7 to 9 and photographs.",
    "fit": "Fit a detector by a model and its training data, or by cached features of them, and write it.",
    "score": "Score inputs of a model or cached features, and write class, score, p-value and verdict of each sample.",
    "export": "Write model and detector as one graph, for any batch size, with a model card beside it.",
    "inspect": "Print what a detector holds: settings, what it pruned, its sensitivities and its calibration.",
    "tune": "Choose the four ratios, scope and neuron reading on OOD validation data, as the paper does.",
    "cache": (
        "Store what the last layer of a model takes in on images or texts; what is there of the same inputs is kept."
    ),
    "bench": "Compare OPNP with other detectors: all are fitted on train and judged by test and the OOD sets.",
    "sweep": (
        "Show what each setting changes, on cached features: ratios, scope, reading, temperature, "
        "training samples, score."
    ),
    "report": (
        "Write results as one page: verdict, methods, thresholds, figures, gallery, and what is needed to repeat them."
    ),
    "serve": (
        "Answer over HTTP: POST /score an image, numbers or a text, get class, confidence, score, p-value and verdict."
    ),
    "monitor": (
        "Say whether a stream of scores is still in distribution: a test that is valid at any time, "
        "with few false alarms."
    ),
}
"""The commands in the order of the help, each with the first line of its docstring; a test compares the two.

A command ``name`` is the function ``name`` of the module ``opnp.cli.name``, which is imported when it is called.
"""

app = typer.Typer(
    name="opnp",
    cls=LazyGroup,
    help="Turn a trained classifier into an out-of-distribution detector without retraining it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _not_imported() -> None:
    """Stand for a command in lists of them; `LazyGroup` puts the command in its place."""


for name, line in COMMANDS.items():
    app.command(name, help=line)(_not_imported)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"opnp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Turn a trained classifier into an out-of-distribution detector without retraining it."""


def main() -> None:
    """Run the command line; errors that opnp or the file system raises become one message and exit code 2.

    So does a lack of memory. Ctrl-C and SIGTERM become one line too, and exit codes 130 and 143.
    """
    warnings.showwarning = _shown
    _print_any_name()
    try:
        with stopped_by_signals():
            app(prog_name="opnp")
    except Stopped as stopped:
        typer.echo(f"{_speaker()}: {stopped}.", err=True)
        sys.exit(stopped.exit_code)
    except (OpnpError, OSError) as error:
        typer.echo(f"{_speaker()}: {error}", err=True)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "no more was given"
        typer.echo(f"{_speaker()}: not enough memory ({reason}): give a smaller `--batch-size`.", err=True)
        sys.exit(2)


def _is_out_of_memory(error: Exception) -> bool:
    from opnp.model import is_out_of_memory

    return is_out_of_memory(error)


def _print_any_name() -> None:
    """Let names of files that are no valid Unicode be printed, with escapes, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _shown(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; of several processes the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"opnp: warning: {message}", err=True)


def _speaker() -> str:
    """Return who brings a message: opnp, or opnp as one of the processes that torchrun started."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    return "opnp" if rank is None or world == "1" else f"opnp: rank {rank} of {world}"

"""The commands together; errors and signals end them in one line and an exit code."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from opnp import __version__
from opnp.cli.bench import bench, cache, sweep
from opnp.cli.export import export
from opnp.cli.fit import fit, inspect
from opnp.cli.monitor import monitor
from opnp.cli.output import steady_streams
from opnp.cli.report import demo, report
from opnp.cli.score import score
from opnp.cli.serve import serve
from opnp.cli.tune import tune
from opnp.errors import OpnpError, OptionError
from opnp.values.files import FEATURE_FILE

COMMANDS: dict[str, Callable[..., None]] = {
    run.__name__: run for run in (demo, fit, score, export, inspect, tune, cache, bench, sweep, report, serve, monitor)
}
"""The commands by name, in the order of the help."""

_WRITTEN = ("out", "checkpoint", "report", "figures", "state", "log_scores")
"""Options that name what a command writes."""

_SIGNALS = ("SIGTERM", "SIGHUP")
"""Ctrl-C, SIGINT, is a `KeyboardInterrupt` of Python's own already. Windows has no SIGHUP."""

# ------------------------------------------------------------------------------------------------- signals that stop


class Stopped(BaseException):
    """A signal came that asks the process to end; not an `Exception`, so that nothing takes it for a failed step.

    Attributes:
        number: Number of the signal.

    """

    def __init__(self, number: int) -> None:
        """Keep the number."""
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        """Return the signal in words."""
        name = signal.Signals(self.number).name
        return "interrupted" if name == "SIGINT" else f"stopped by {name}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` where a signal arrives inside that would end the process without unwinding, or for Ctrl-C.

    A second such signal ends the process at once. Handlers that others have set are left alone.
    """
    owner, changed = os.getpid(), []

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a worker that was forked: it has nothing to give back
            signal.raise_signal(number)
            sys.exit(128 + number)
        raise Stopped(number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _SIGNALS if is_main and hasattr(signal, name)]
    try:
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                changed.append(number)
                signal.signal(number, stop)
        yield
    except KeyboardInterrupt as error:
        raise Stopped(signal.SIGINT) from error
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


# ----------------------------------------------------------------------------------------------------------- commands


def command_function(name: str) -> Callable[..., None]:
    """Return the function of a command, with each field of its groups of options as a parameter, as typer reads them.

    A group is a dataclass, the type of a parameter; the function of the module is given one made of the fields.
    """
    run = COMMANDS[name]
    own = signature(run, eval_str=True)
    parameters: list[Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in own.parameters.values():
        if not is_dataclass(group := parameter.annotation):
            parameters.append(parameter)
            continue
        groups[parameter.name], hints = group, get_type_hints(group, include_extras=True)
        parameters += [
            parameter.replace(name=each.name, default=each.default, annotation=hints[each.name])
            for each in fields(group)
        ]

    @wraps(run)
    def checked(**given: object) -> None:
        require_distinct_files(given)
        for place, group in groups.items():
            given[place] = group(**{each.name: given.pop(each.name) for each in fields(group)})
        run(**given)

    checked.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # as `inspect` asks
    checked.__annotations__ = {each.name: each.annotation for each in parameters}
    return checked


# ---------------------------------------------------------------------------------- no file is read and written at once


def require_distinct_files(given: Mapping[str, object]) -> None:
    """Raise if a file to write is one to read, or one file is to be written for two options.

    Links are followed. Folders to read are left out: results may lie beside what they were made from, but a folder of
    features may hold no file to read that has the name of one to write.

    Args:
        given: Arguments of a command by name, paths or lists of such among them.

    Raises:
        OptionError: If two are the same; the message names both.

    Example:
        >>> require_distinct_files({"weights": Path(__file__), "out": Path("detector.safetensors")})
        >>> require_distinct_files({"out": Path("one.html"), "report": Path("one.html")})
        Traceback (most recent call last):
            ...
        opnp.errors.OptionError: `--report` names the file of `--out`, one.html: give each a name of its own.

    """
    written: dict[str, str] = {}
    for name in _WRITTEN:
        option = f"--{name.replace('_', '-')}"
        for path in _paths(given.get(name)):
            place = os.path.realpath(path)
            if place in written:
                raise OptionError(
                    f"`{option}` names the file of `{written[place]}`, {path}: give each a name of its own."
                )
            written[place] = option
    for name, value in given.items():
        for path in _paths(value) if name not in _WRITTEN else ():
            place = os.path.realpath(path)
            over = written.get(place) or _over_features(place, written)
            if over is not None and os.path.isfile(place):  # noqa: PTH113  # raises nothing for names that are none
                raise OptionError(
                    f"`{over}` would write over {path}, which is given as `{name.replace('_', '-')}`: name another.",
                )


def _over_features(place: str, written: Mapping[str, str]) -> str | None:
    """Return `--out` if it is the folder of a file that has the name of one that is written there."""
    folder, name = os.path.split(place)
    return "--out" if FEATURE_FILE.fullmatch(name) and written.get(folder) == "--out" else None


def _paths(value: object) -> Iterator[Path]:
    """Return what may be a path: paths, texts, and what follows the name in texts of the form NAME=PATH."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, Path):
            yield each
        elif isinstance(each, str) and "\0" not in each:
            yield from (Path(each), Path(each.partition("=")[2]))


# ------------------------------------------------------------------------------------------------------ the application


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # click's context, which newer versions of typer have of their own
        """Run the command; Ctrl-C in it is not for typer, some versions of which take it for an answer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(signal.SIGINT) from error


app = typer.Typer(
    name="opnp",
    cls=_Group,
    help="Turn a trained classifier into an out-of-distribution detector without retraining it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name in COMMANDS:
    app.command(name)(command_function(name))


def named_command(name: str) -> Any:  # noqa: ANN401  # a command of click, or of the click in typer
    """Return the command of this name."""
    group: Any = typer.main.get_command(app)
    return group.commands[name]


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
    with steady_streams():
        _run()


def _run() -> None:
    try:
        with _stopped_by_signals():
            app(prog_name="opnp")
    except Stopped as stopped:
        typer.echo(f"{_speaker()}: {stopped}.", err=True)
        sys.exit(128 + stopped.number)  # what shells report: 143 for SIGTERM
    except (OpnpError, OSError) as error:
        typer.echo(f"{_speaker()}: {error}", err=True)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from opnp.model import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "no more was given"
        typer.echo(f"{_speaker()}: not enough memory ({reason}): give a smaller `--batch-size`.", err=True)
        sys.exit(2)


def _shown(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; of several processes the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"opnp: warning: {message}", err=True)


def _speaker() -> str:
    """Return who brings a message: opnp, or opnp as one of the processes that torchrun started."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    return "opnp" if rank is None or world == "1" else f"opnp: rank {rank} of {world}"

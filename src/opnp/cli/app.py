"""The commands together: imported when they are called; errors and signals end them in one line and an exit code."""

import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from opnp import __version__
from opnp.cli.output import steady_streams
from opnp.errors import OpnpError, OptionError
from opnp.values.files import FEATURE_FILE

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
    "sweep": "Show what each setting of the paper's method changes, on cached features.",
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
"""The commands in the order of the help, each with the first line of its docstring; a test compares the two."""

_MODULES = {"inspect": "fit", "cache": "bench", "sweep": "bench", "demo": "report"}
"""Modules of commands that have none of their own name."""

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


# -------------------------------------------------------------------------------------- commands, imported when called


class _LazyGroup(TyperGroup):
    """A group that lists commands by stand-ins with name and help line, and imports the one that is called."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # as below
        """Run the command; Ctrl-C in it is not for typer, some versions of which take it for an answer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(signal.SIGINT) from error

    def resolve_command(
        self,
        ctx: Any,  # noqa: ANN401  # click's context, which newer versions of typer bring along as their own
        args: list[str],
    ) -> tuple[str | None, Any, list[str]]:
        """Return name, command and arguments of what is called; the command is the real one."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in if name is None else imported_command(name), rest


def imported_command(name: str) -> Any:  # noqa: ANN401  # a command of click, or of the click in typer
    """Return the command of this name, imported now."""
    alone = typer.Typer(add_completion=False)
    alone.command(name)(command_function(name))
    return typer.main.get_command(alone)


def command_function(name: str) -> Callable[..., None]:
    """Return the function of a command, with each field of its groups of options as a parameter, as typer reads them.

    A group is a dataclass, the type of a parameter; the function of the module is given one made of the fields.
    """
    run = getattr(import_module(f"opnp.cli.{_MODULES.get(name, name)}"), name)
    signature = inspect.signature(run, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in signature.parameters.values():
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

    checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # as `inspect` asks
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

app = typer.Typer(
    name="opnp",
    cls=_LazyGroup,
    help="Turn a trained classifier into an out-of-distribution detector without retraining it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _not_imported() -> None:
    """Stand for a command in lists of them; `_LazyGroup` puts the command in its place."""


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

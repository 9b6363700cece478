"""What commands print: a table for people, JSON for programs, progress on standard error."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from opnp.cli.options import shaping_text

if TYPE_CHECKING:
    from opnp.detector import Settings

_STREAMS = 3
"""Standard input, output and error, by the numbers that they have."""


def progress_bar(description: str, *, is_quiet: bool) -> Any:  # noqa: ANN401  # the type of a wrapper of any iterable
    """Return a wrapper of iterables that shows a bar with rate and time left, or None where nothing is to be shown.

    Args:
        description: What is being done.
        is_quiet: Whether to show nothing.

    Returns:
        A function for the `progress` option of detectors, or None.

    """
    if is_quiet or not sys.stderr.isatty():
        return None

    def wrapped(items: Iterable[Any]) -> Iterable[Any]:
        total = len(items) if isinstance(items, Sized) else None
        columns = (
            TextColumn(description),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(description, total=total, rate="")
            for item in items:
                yield item
                bars.advance(task)
                bars.update(task, rate=_rate(bars, task))

    return wrapped


class _Stream(TextIOWrapper):
    """A standard stream whose reader may leave early, as ``head`` does: what is printed then is lost, and no more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._end()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Let a command do its work whatever becomes of the standard streams: closed before it starts, or while it runs."""
    before = sys.stdout, sys.stderr
    while (place := os.open(os.devnull, os.O_RDWR)) < _STREAMS:  # else the next file that is opened gets their number
        pass
    os.close(place)
    sys.stdout, sys.stderr = made = [_steady(stream) for stream in before]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in made:
            stream.flush()
            if isinstance(stream, _Stream):
                stream.detach()


def _steady(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed when Python started
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # as long as the process lasts
    if not isinstance(stream, TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # names of files that are no valid Unicode are printed with escapes
    if type(stream) is not TextIOWrapper:  # that of a test, say
        return stream
    return _Stream(stream.buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering)


def print_json(values: Mapping[str, object]) -> None:
    """Print values as JSON on standard output."""
    typer.echo(json.dumps(values, indent=2, sort_keys=True, allow_nan=False))


def print_result(facts: Mapping[str, object], *, json: bool, texts: Mapping[str, str] | None = None) -> None:
    """Print facts as JSON for programs, or for people, with what reads better as text in its place."""
    if json:
        print_json(facts)
    else:
        print_facts({**facts, **(texts or {})})


def print_facts(facts: Mapping[str, object]) -> None:
    """Print facts, one a line, numbers with four digits; what is None is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(Text(name, style="bold"), Text(text))  # as it is: brackets are no markup
    show_table(table)


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose first column is text and the others numbers."""
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    show_table(table)


def show_table(table: Table) -> None:
    """Print a table on standard output, as wide as it is where that is no terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


def settings_text(settings: "Settings") -> str:
    """Return settings as options of ``opnp fit``: the members of a fusion, or what differs from the plain energy."""
    if settings.members is not None:
        return f"--members {','.join(settings.members)}"
    ratios = settings.ratios
    shares = {"w-min": ratios.w_min, "w-max": ratios.w_max, "o-min": ratios.o_min, "o-max": ratios.o_max}
    texts = [f"--rho-{name} {value:g}" for name, value in shares.items() if value > 0]
    if ratios.w_min or ratios.w_max:
        texts.append(f"--scope {settings.scope}")
    if ratios.o_min or ratios.o_max:
        texts.append(f"--neuron {settings.neuron}")
    if settings.shaping is not None:
        texts.append(f"--shaping {shaping_text(settings.shaping)}")
    return " ".join(texts) or "no pruning, no shaping"


def _rate(bars: Progress, task: TaskID) -> str:
    speed = bars.tasks[task].speed
    return "" if speed is None else f"{speed:.1f}/s"

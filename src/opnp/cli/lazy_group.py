"""Commands that are imported when they are called: help, version and completion wait for no torch."""

import signal
from functools import wraps
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from opnp.cli.distinct_files import require_distinct_files
from opnp.cli.stopping import Stopped

__all__ = ["LazyGroup", "imported_command"]


class LazyGroup(TyperGroup):
    """A group that lists commands by stand-ins, and imports the one that is called or completed.

    The stand-ins carry name and help line. A command ``name`` is the function ``name`` of the module ``opnp.cli.name``.
    """

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
    run = getattr(import_module(f"opnp.cli.{name}"), name)

    @wraps(run)
    def checked(**given: object) -> None:
        require_distinct_files(given)
        run(**given)

    alone.command(name)(checked)
    return typer.main.get_command(alone)

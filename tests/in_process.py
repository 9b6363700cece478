"""The command line, run in this process: arguments in; exit code, output and errors out."""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import pytest

from opnp.cli import main

__all__ = ["Opnp", "Outcome", "command_line", "done", "refused", "run_opnp"]


class Outcome(NamedTuple):
    """What a run of the command line left."""

    code: int
    out: str
    err: str


Opnp = Callable[..., Outcome]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run ``opnp`` in this process; any exception but that of leaving comes through."""
    monkeypatch.setattr(sys, "argv", ["opnp", *map(str, arguments)])
    code = _left()
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def run_opnp(*arguments: object) -> Outcome:
    """Run ``opnp`` in this process where there are no fixtures."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["opnp", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _left()
    return Outcome(code, out.getvalue(), err.getvalue())


def _left() -> int:
    """Run the command line by ``sys.argv``, and return the code that it leaves with."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    return 0


def done(opnp: Opnp, *arguments: object) -> Outcome:
    """Return what a run left that must not fail."""
    outcome = opnp(*arguments)
    assert outcome.code == 0, (outcome.out, outcome.err)
    return outcome


def refused(opnp: Opnp, *arguments: object) -> str:
    """Return the message of a run that must fail with exit code 2 and nothing but a message."""
    outcome = opnp(*arguments)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert outcome.err.startswith("opnp: ")
    assert "Traceback" not in outcome.err
    return outcome.err

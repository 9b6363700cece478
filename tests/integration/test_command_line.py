"""The command line as a whole: commands are imported when they are called, listed without it, and completed."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from opnp.cli.app import COMMANDS
from tests.in_process import Opnp

FOLDER = Path(str(import_module("opnp.cli").__file__)).parent


@pytest.mark.parametrize("name", COMMANDS)
def test_its_line_in_the_help_is_the_first_of_its_docstring(name: str) -> None:
    documented = getattr(import_module(f"opnp.cli.{name}"), name).__doc__
    assert COMMANDS[name] == documented.splitlines()[0]


def test_every_command_is_listed() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert {name for name, text in sources.items() if text.startswith(f'"""``opnp {name}``:')} == set(COMMANDS)


def test_help_lists_the_commands_in_order(opnp: Opnp) -> None:
    outcome = opnp("-h")
    assert (outcome.code, outcome.err) == (0, "")
    commands = outcome.out[outcome.out.index("Commands") :]
    assert re.findall(r"^\W{1,2}(\w+)  +\w", commands, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_its_own(opnp: Opnp, name: str) -> None:
    outcome = opnp(name, "-h")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split()[:4] == ["Usage:", "opnp", name, "[OPTIONS]"]
    assert name == "serve" or "--json" in outcome.out  # a service has no result to print


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("scores", "score"), ("benhc", "bench")])
def test_an_unknown_command_is_answered_with_a_near_one(opnp: Opnp, typed: str, meant: str) -> None:
    outcome = opnp(typed, "--help")
    assert outcome.code == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'" in outcome.err
    assert "Usage: opnp [OPTIONS] COMMAND" in outcome.err


def test_a_missing_option_is_named(opnp: Opnp) -> None:
    outcome = opnp("score")
    assert outcome.code == 2
    assert "Usage: opnp score [OPTIONS]" in outcome.err
    assert "Missing option '--" in outcome.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(opnp: Opnp, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_OPNP_COMPLETE", f"source_{shell}")
    outcome = opnp()
    assert (outcome.code, outcome.err) == (0, "")
    assert f"_OPNP_COMPLETE=complete_{shell}" in outcome.out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("opnp s", ["score", "sweep", "serve"]),
        ("opnp inspect --js", ["--json"]),
        ("opnp fit --rho-w", ["--rho-w-min", "--rho-w-max"]),
        ("opnp fit --scope ", ["layer", "class"]),
        ("opnp fit --mem", ["--members"]),
        ("opnp fit --val", ["--validation"]),
        ("opnp tune --val", ["--validation", "--val-ood"]),
        ("opnp nothing --js", []),
    ],
)
def test_bash_completes(opnp: Opnp, monkeypatch: pytest.MonkeyPatch, words: str, completed: list[str]) -> None:
    monkeypatch.setenv("_OPNP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    outcome = opnp()
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split() == completed


def test_zsh_completes_with_the_lines_of_the_help(opnp: Opnp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OPNP_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "opnp t")
    assert '"tune":"Choose the four ratios,' in opnp().out


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_completion_is_installed(
    opnp: Opnp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str, file: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    outcome = opnp("--install-completion")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{shell} completion installed in {tmp_path}" in outcome.out
    assert (tmp_path / file).is_file()
    assert f"_OPNP_COMPLETE=complete_{shell}" in opnp("--show-completion").out


def test_it_runs_as_a_module_under_its_own_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "opnp", "--help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split()[:4] == ["Usage:", "opnp", "[OPTIONS]", "COMMAND"]
    assert run.stderr == ""

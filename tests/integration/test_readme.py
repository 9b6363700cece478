"""What the README shows works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.conftest import Opnp

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  # the project's own page
    assert (tmp_path / "detector.safetensors").is_file()


def test_the_shell_commands_run(opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = next(block for block in blocks("sh") if "opnp fit" in block)
    for line in script.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "opnp"
        outcome = opnp(*arguments)
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "scores.csv").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert f"\n{target}: " in makefile, target

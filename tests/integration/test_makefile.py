"""What `make demo` and `make venv` install, with a stand-in for Python that writes down what pip is asked for."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"""\
#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"
mkdir -p "$3/bin" "$3/installed"
cp inner "$3/bin/python"
printf '#!/bin/sh\\necho "the demo runs"\\n' > "$3/bin/opnp"
chmod +x "$3/bin/opnp"
"""
INNER = f"""\
#!/bin/sh
home=$(dirname "$0")/..
if [ "$2" = pip ]; then
    echo "pip $*"
    touch "$home/installed/altair.py"
    case "$*" in *dev*) touch "$home/installed/pytest.py";; esac
    exit 0
fi
PYTHONPATH=$home/installed:src exec {sys.executable} -S "$@"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "src" / "opnp").mkdir(parents=True)
    for name in ("src/opnp/__init__.py", "pyproject.toml"):
        (tmp_path / name).touch()
    for name, text in {"python": PYTHON, "inner": INNER}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def made(folder: Path, *targets: str) -> list[str]:
    """Return the lines that make prints."""
    run = subprocess.run(
        ["make", "PYTHON=./python", *targets],  # noqa: S607  # whichever is installed
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_installs_no_tools_and_the_next_target_adds_them(folder: Path) -> None:
    said, asked, ran = made(folder, "demo")
    assert "6 GB" in said
    assert asked.endswith(".[bench,report]")
    assert ran == "the demo runs"
    assert made(folder, "demo") == ["the demo runs"]
    said, asked = made(folder, "venv")
    assert "adding" in said
    assert asked.endswith(".[all,dev]")
    assert made(folder, "venv", "demo") == ["the demo runs"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_environment_that_is_half_made_is_made_anew(folder: Path) -> None:
    said, asked = made(folder, "venv")
    assert "7 GB" in said
    assert asked.endswith(".[all,dev]")
    (folder / ".venv" / ".complete").unlink()
    assert "starting over" in made(folder, "demo")[0]
    assert not (folder / ".venv" / "installed" / "pytest.py").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_target_names_only_what_is_defined() -> None:
    """A variable that is read before its line is empty, and the command that uses it calls another program."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE)
    assert {"records", "results", "paper", "bench", "test"} <= set(targets)
    run = subprocess.run(
        ["make", "--warn-undefined-variables", "--dry-run", *targets],  # noqa: S607  # whichever is installed
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""

"""A virtual environment in which a wheel finds its dependencies and nothing else, without a download.

What `pip install` would fetch for the wheel is installed already in the environment that runs the tests, among much
else. The new environment gets links to exactly the packages that the wheel requires, to those that these require, and
so on; then pip, which has no index to look at, installs the wheel and finds every requirement there, or fails.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from venv import EnvBuilder

from packaging.requirements import Requirement

__all__ = ["core_environment", "finished", "required_distributions"]

_FROM_OUTSIDE = ("PYTHON", "VIRTUAL_ENV")
"""Beginnings of the environment variables that could bring other packages in."""


def core_environment(folder: Path, wheel: Path, *, requirements: Iterable[str]) -> Path:
    """Return the Python of a new virtual environment with a wheel and what it requires.

    Args:
        folder: Where to build it.
        wheel: The wheel to install.
        requirements: What may be linked from the running environment, with all that it requires in turn.

    """
    EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for installed in required_distributions(requirements):
        for name in _top_level_names(installed):
            if not (packages / name).is_symlink():  # a namespace such as `nvidia` belongs to many
                (packages / name).symlink_to(Path(str(installed.locate_file(name))))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--python", str(python)]
    finished([*pip, "install", "--quiet", "--no-index", str(wheel)])
    return python


def required_distributions(requirements: Iterable[str]) -> list[Distribution]:
    """Return the installed distributions that requirements name, and those that these require here, by name."""
    waiting = [Requirement(text) for text in requirements]
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        installed = distribution(wanted.name)
        found[installed.name] = installed
        for extra in {"", *wanted.extras}:
            if (installed.name, extra) not in done:
                done.add((installed.name, extra))
                parts = [Requirement(text) for text in installed.requires or ()]
                waiting += [part for part in parts if part.marker is None or part.marker.evaluate({"extra": extra})]
    return [found[name] for name in sorted(found)]


def finished(
    command: list[str], *, folder: Path | None = None, code: int = 0, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Return a command that has run outside the environment of the tests, and ended with this exit code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FROM_OUTSIDE)}
    run = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert run.returncode == code, f"{command}\n{run.stdout}\n{run.stderr}"
    return run


def _top_level_names(installed: Distribution) -> set[str]:
    """Return the files and folders of a distribution, less programs and start-up code.

    `Distribution.files` takes seconds for torch, and its record of 12 000 files is a table with the path in front.
    """
    record = installed.read_text("RECORD")
    assert record is not None, f"{installed.name} has no record of its files"
    names = {row[0].partition("/")[0] for row in csv.reader(record.splitlines())}
    return {name for name in names if name not in {"..", "__pycache__"} and not name.endswith(".pth")}

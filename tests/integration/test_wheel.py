"""The wheel: what it asks for, what it holds, and that it works where nothing is but what it asks for."""

import csv
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple
from venv import EnvBuilder

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CORE = {"filelock", "lazy-loader", "msgspec", "numpy", "rich", "safetensors", "torch", "typer"}
EXTRAS = {
    "bench": {"pillow", "pyarrow", "pytorch-ood", "scikit-learn"},
    "hf": {"datasets", "huggingface-hub", "pillow", "transformers"},
    "mlflow": {"mlflow-skinny", "pandas"},
    "onnx": {"onnx", "onnxruntime", "onnxscript"},
    "ray": {"ray"},
    "report": {"altair", "jinja2", "pyarrow", "vl-convert-python"},
    "sentences": {"huggingface-hub", "sentence-transformers"},
    "serve": {"fastapi", "pillow", "prometheus-client", "starlette", "uvicorn"},
    "vision": {"pillow", "timm", "torchvision"},
}
FOREIGN = """
    PIL altair datasets fastapi hypothesis mlflow onnx onnxruntime onnxscript pandas pyarrow pytest pytorch_ood ray
    sklearn timm torchvision transformers uvicorn vl_convert
"""


_FROM_OUTSIDE = ("PYTHON", "VIRTUAL_ENV")
"""Beginnings of the environment variables that could bring other packages in."""


def core_environment(folder: Path, wheel: Path, *, required: Iterable[str]) -> Path:
    """Return the Python of a new virtual environment with a wheel and what it requires, without a download.

    What `pip install` would fetch is installed already in the environment that runs the tests, among much else. The
    new one gets links to exactly the packages that are required, in turn; then pip, which has no index to look at,
    installs the wheel and finds every requirement there, or fails.
    """
    EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for installed in required_distributions(required):
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
    command: list[str], *, folder: Path | None = None, code: int = 0, seconds: float = 900
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


class Built(NamedTuple):
    """What a build leaves."""

    wheel: Path
    archive: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    finished([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder=folder)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, archive)


@pytest.fixture(scope="module")
def python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and its core dependencies."""
    return core_environment(tmp_path_factory.mktemp("core") / "venv", built.wheel, required=CORE)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def requirements(message: Message, extra: str) -> set[str]:
    """Return the names of what is required with an extra and not without it; for "" of what always is."""
    every = [Requirement(str(text)) for text in message.get_all("Requires-Dist", [])]

    def required(chosen: str) -> set[str]:
        return {each.name for each in every if each.marker is None or each.marker.evaluate({"extra": chosen})}

    return required(extra) - required("") if extra else required("")


def test_it_asks_for_the_core_and_offers_the_extras(built: Built) -> None:
    message = metadata(built.wheel)
    assert requirements(message, "") == CORE
    assert set(message.get_all("Provides-Extra", [])) == {*EXTRAS, "all", "dev", "test"}
    assert {name: requirements(message, name) for name in EXTRAS} == EXTRAS
    assert requirements(message, "all") == set().union(*EXTRAS.values())
    assert {"build", "hatchling", "pytest"} <= requirements(message, "test")
    assert requirements(message, "dev") > requirements(message, "test")


def test_it_holds_the_package_whole_and_nothing_else(built: Built) -> None:
    files = [path.relative_to(ROOT / "src") for path in (ROOT / "src" / "opnp").rglob("*") if path.is_file()]
    sources = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(built.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == sources
    assert "opnp/py.typed" in names


def test_the_source_archive_holds_what_the_tests_read(built: Built) -> None:
    with tarfile.open(built.archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    documents = [path for path in (ROOT / "docs").rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in (*_python_files(), *documents)} <= names
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"} <= names


def test_only_the_core_is_there(python: Path) -> None:
    code = (
        "import importlib.util, opnp, sys\n"
        "print(opnp.__file__)\n"
        f"print(*(name for name in {FOREIGN!r}.split() if importlib.util.find_spec(name) is not None))"
    )
    place, foreign = finished([str(python), "-c", code], folder=python.parent).stdout.splitlines()
    assert Path(place).is_relative_to(python.parents[1])
    assert foreign == ""


def test_help_and_version(python: Path) -> None:
    command = str(python.with_name("opnp"))
    assert "Usage: opnp [OPTIONS] COMMAND" in finished([command, "--help"]).stdout
    as_module = [str(python), "-m", "opnp"]
    assert finished([*as_module, "--version"]).stdout == finished([command, "--version"]).stdout
    assert "Usage: opnp fit [OPTIONS]" in finished([*as_module, "fit", "--help"]).stdout


def test_it_fits_and_scores(python: Path, cached: Path) -> None:
    fit_and_score(python, cached)


def test_what_needs_an_extra_names_it(python: Path, tmp_path: Path) -> None:
    run = finished([str(python), "-m", "opnp", "demo"], folder=tmp_path, code=2)
    assert re.fullmatch(r"opnp: .* not installed here: `pip install 'opnp\[bench\]'`\.\n", run.stderr)


@pytest.mark.long
def test_it_installs_from_the_index(built: Built, cached: Path, tmp_path: Path) -> None:
    finished([sys.executable, "-m", "venv", str(tmp_path / "venv")])
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        finished([*install, "--dry-run", "--no-deps", "typer"])
    except AssertionError as error:
        pytest.skip(f"no package index answers: {error}")
    finished([*install, str(built.wheel)], seconds=3600)
    fit_and_score(python, cached)


def fit_and_score(python: Path, cached: Path) -> None:
    """Fit a detector on cached features and score others, with the command line of an environment."""
    command = str(python.with_name("opnp"))
    fit = ["--features", "train.safetensors", "--head", "head.safetensors", "--validation", "validation.safetensors"]
    finished([command, "fit", *fit, "--rho-w-min", "0.1", "--out", "detector.safetensors"], folder=cached)
    score = ["--detector", "detector.safetensors", "--features", "test.safetensors", "--out", "scores.csv"]
    finished([command, "score", *score], folder=cached)
    with (cached / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert all(0 < float(row["p_value"]) <= 1 for row in rows)
    assert {row["is_ood"] for row in rows} <= {"True", "False"}


def _python_files() -> list[Path]:
    """Return the Python files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]

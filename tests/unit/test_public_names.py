"""Public names are imported when they are first used; each stands once, in `opnp/__init__.pyi`."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from inspect import ismodule
from pathlib import Path

import pytest

import opnp

ROOT = Path(__file__).parents[2]
ROOMS = {name for name in dir(opnp) if ismodule(getattr(opnp, name))}


def in_a_new_process(code: str) -> str:
    """Return what a new Python prints that runs this."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("package", ["opnp", "opnp.core"])
def test_every_name_of_the_stub_is_there(package: str) -> None:
    module = import_module(package)
    assert [name for name in dir(module) if not hasattr(module, name)] == []


def test_few_names_are_at_the_top_and_all_of_them_in_rooms() -> None:
    names = set(dir(opnp)) - ROOMS
    assert len(names) == 30
    assert names <= {name for room in ("core", "detector", "errors", "model") for name in dir(getattr(opnp, room))}


def test_no_name_hides_a_submodule() -> None:
    assert not {module.name for module in pkgutil.iter_modules(opnp.__path__)} & (set(dir(opnp)) - ROOMS)


def test_names_are_listed_before_they_are_imported() -> None:
    assert set(in_a_new_process("import opnp, sys; print(*dir(opnp)); assert 'torch' not in sys.modules").split()) == {
        *dir(opnp)
    }


def test_rooms_need_no_import_of_their_own() -> None:
    code = "import opnp\n" + "\n".join(f"assert opnp.{room}.__name__ == 'opnp.{room}'" for room in sorted(ROOMS))
    in_a_new_process(code)


def test_the_version_is_said_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert (project["project"]["dynamic"], project["tool"]["hatch"]["version"]["path"]) == (
        ["version"],
        "src/opnp/__init__.py",
    )
    assert f"\nversion: {opnp.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="energy_scor"):
        getattr(opnp, "energy_scor")  # noqa: B009  # written out, mypy refuses it
    with pytest.raises(ImportError, match="cannot import name 'energy_scor'"):
        exec("from opnp import energy_scor")  # noqa: S102  # written out, mypy refuses it


def test_a_star_brings_names_and_no_rooms() -> None:
    code = "model = data = 1\nfrom opnp import *\nprint(model, data, OPNP.__name__)"
    assert in_a_new_process(code) == "1 1 OPNP\n"


def test_tests_that_the_changelog_names_are_there() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert named
    for path, name in named:
        assert name in (ROOT / path).read_text(encoding="utf-8"), (path, name)

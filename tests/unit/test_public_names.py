"""Public names are imported when they are first used, and stand in all three places of `opnp/__init__.py`."""

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import opnp

SOURCE = Path(str(opnp.__file__))
SUBMODULES = sorted({module.name for module in pkgutil.iter_modules(opnp.__path__)} - {"__main__"})


def in_a_new_process(code: str) -> str:
    """Return what a new Python prints that runs this."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def imports_for_type_checkers() -> dict[str, tuple[str, ...]]:
    """Return the names under ``if TYPE_CHECKING:`` by module."""
    conditions = [node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    body = next(node.body for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        str(node.module): tuple(alias.name for alias in node.names) for node in body if isinstance(node, ast.ImportFrom)
    }


def test_the_three_lists_agree() -> None:
    assert imports_for_type_checkers() == opnp._NAMES_OF
    assert sorted(name for names in opnp._NAMES_OF.values() for name in names) == sorted(opnp.__all__)
    assert len(set(opnp.__all__)) == len(opnp.__all__)


@pytest.mark.parametrize(("module", "names"), opnp._NAMES_OF.items())
def test_every_name_is_the_one_of_its_module(module: str, names: tuple[str, ...]) -> None:
    home = import_module(module)
    assert set(names) <= set(home.__all__)
    for name in names:
        assert getattr(opnp, name) is getattr(home, name)
        assert vars(opnp)[name] is getattr(home, name), "the second use looks nothing up"


def test_every_error_is_public() -> None:
    assert set(opnp._NAMES_OF["opnp.errors"]) == set(opnp.errors.__all__)


def test_no_name_hides_a_submodule() -> None:
    assert not set(SUBMODULES) & set(opnp.__all__)


def test_names_are_listed_before_they_are_imported() -> None:
    code = "import opnp, sys; print(*dir(opnp)); assert 'torch' not in sys.modules"
    assert {*opnp.__all__, *SUBMODULES, "__doc__"} <= set(in_a_new_process(code).split())


def test_a_star_brings_all_names_and_submodules_need_no_import() -> None:
    submodules = "\n".join(f"print(opnp.{name}.__name__)" for name in SUBMODULES)
    star = "print(*(name for name in dir() if not name.startswith('__')))"
    *modules, names = in_a_new_process(f"import opnp\n{submodules}\ndel opnp\nfrom opnp import *\n{star}").splitlines()
    assert modules == [f"opnp.{name}" for name in SUBMODULES]
    assert set(names.split()) == set(opnp.__all__)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'opnp' has no attribute 'energy_scor'") as raised:
        getattr(opnp, "energy_scor")  # noqa: B009  # written out, mypy refuses it
    assert raised.value.name == "energy_scor"
    assert raised.value.obj is opnp  # from the two, Python makes its "Did you mean: 'energy_score'?"
    with pytest.raises(ImportError, match="cannot import name 'energy_scor'"):
        exec("from opnp import energy_scor")  # noqa: S102  # written out, mypy refuses it

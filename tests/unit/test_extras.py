"""Where a package of an extra is missing, the message names an extra that exists and brings that package."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "opnp").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {Requirement(text).name for text in PROJECT["dependencies"]}
EXTRAS = {
    name: {Requirement(text).name for text in texts}
    for name, texts in PROJECT["optional-dependencies"].items()
    if name not in {"all", "dev", "test"}
}
PACKAGE_OF = {name.replace("-", "_"): name for names in EXTRAS.values() for name in names}
PACKAGE_OF |= {"PIL": "pillow", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Packages of the extras by the name of their module."""
MISSING = re.compile(r"raise MissingExtraError\(|require_installed\(")


def modules_imported(tree: ast.AST) -> Iterator[str]:
    """Yield the first names of the modules that a piece of code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


def modules_named(tree: ast.AST) -> Iterator[str]:
    """Yield the same, and the first names in texts, as `find_spec` and `import_module` take them."""
    yield from modules_imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\A(\w+)(?:\.\w+)*\Z", node.value)


def places_that_raise(module: ast.Module) -> Iterator[ast.stmt]:
    """Yield the functions, and the statements of the module itself, that raise `MissingExtraError`."""
    definitions = (ast.FunctionDef, ast.ClassDef)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    statements = [node for node in module.body if not isinstance(node, definitions)]
    yield from (node for node in (*functions, *statements) if MISSING.search(ast.unparse(node)))


def is_extra(node: ast.AST) -> TypeGuard[ast.keyword]:
    """Return whether this is the `extra` of a call of `require_installed`."""
    return isinstance(node, ast.keyword) and node.arg == "extra"


def with_constants(place: ast.stmt, module: ast.Module) -> ast.Module:
    """Return a piece of code together with the values of the module's constants that it reads."""
    read = {node.id for node in ast.walk(place) if isinstance(node, ast.Name)}
    constants = [
        node
        for node in module.body
        if isinstance(node, ast.Assign) and read & {ast.unparse(target) for target in node.targets}
    ]
    return ast.Module(body=[*constants, place], type_ignores=[])


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.name != "errors.py" and MISSING.search(path.read_text(encoding="utf-8"))],
    ids=lambda path: str(path.relative_to(ROOT / "src")),
)
def test_the_message_names_an_extra_with_the_package(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    places = list(places_that_raise(module))
    assert places
    for place in places:
        code = with_constants(place, module)
        packages = {PACKAGE_OF[name] for name in modules_named(code) if name in PACKAGE_OF}
        assert packages, f"which package is missing? {ast.unparse(place)}"
        texts = [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
        extras = re.findall(r"pip install 'opnp\[([a-z]+)\]'", "".join(map(str, texts)))
        extras += [str(ast.literal_eval(each.value)) for each in ast.walk(code) if is_extra(each)]
        assert extras, f"which command installs it? {ast.unparse(place)}"
        for name in extras:
            assert packages <= EXTRAS[name], f"{packages} in {name}"


def test_every_command_that_installs_an_extra_names_one_that_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES]
    named = {
        name
        for page in pages
        for extras in re.findall(r"opnp\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        for name in extras.split(",")
    }
    assert named
    assert named <= {*EXTRAS, "all", "dev", "test"}


def test_what_is_imported_is_required() -> None:
    known = {*sys.stdlib_module_names, "opnp", *CORE, *PACKAGE_OF}
    imported = {path: set(modules_imported(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert {path: modules - known for path, modules in imported.items() if modules - known} == {}


def test_all_is_every_extra() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == set(EXTRAS)

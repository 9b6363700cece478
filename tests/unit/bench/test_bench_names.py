"""Names of `opnp.bench` are imported when they are first used, so that reports need no torch."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import opnp.bench


def test_the_three_lists_agree_and_every_name_is_the_one_of_its_module() -> None:
    body = ast.parse(Path(str(opnp.bench.__file__)).read_text(encoding="utf-8")).body
    block = next(node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {
        str(node.module): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert imports == opnp.bench._NAMES_OF
    assert sorted(name for names in imports.values() for name in names) == sorted(opnp.bench.__all__)
    for module, names in imports.items():
        for name in names:
            assert getattr(opnp.bench, name) is getattr(import_module(module), name)


def test_reports_load_no_torch() -> None:
    code = (
        "import sys, opnp.report as report; [getattr(report, n) for n in report.__all__]; print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"

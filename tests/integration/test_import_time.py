"""What importing costs: nothing where no tensor is needed, and little beside torch where one is."""

import subprocess
import sys

import pytest

from opnp.cli.app import COMMANDS


def printed(code: str, *arguments: str) -> str:
    """Return what a new Python prints that runs this."""
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_detector_brings_little_beyond_torch() -> None:
    code = "import sys, torch; before = set(sys.modules); import opnp; opnp.OPNP; print(*set(sys.modules) - before)"
    brought = printed(code).split()
    packages = {name.partition(".")[0] for name in brought} - {*sys.stdlib_module_names}
    assert packages <= {"lazy_loader", "msgspec", "numpy", "opnp", "safetensors", "torch"}
    assert len([name for name in brought if name.startswith("torch.")]) < 10, "more of torch than `import torch`"


@pytest.mark.parametrize(
    "code",
    [
        "import opnp",
        "import opnp; opnp.OpnpError; opnp.errors.OptionError",
        "import opnp.cli",
        "import opnp.report as report; [getattr(report, name) for name in report.__all__]",
        "import opnp.values.bench, opnp.values.fit, opnp.values.pictures, opnp.values.sweep",
    ],
)
def test_an_import_loads_no_torch(code: str) -> None:
    assert printed(f"import sys; {code}; print('torch' in sys.modules)") == "False\n"


HELP = """
import contextlib, io, sys
from opnp.cli import app
loading = []
for command in ([], *([name] for name in sys.argv[1:])):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        app([*command, "--help"], prog_name="opnp")
    assert "Usage: opnp" in shown.getvalue()
    heavy = {"numpy", "safetensors", "torch"} & set(sys.modules)
    if heavy:
        print(*command, *heavy)
        break
"""


def test_no_help_loads_torch() -> None:
    assert printed(HELP, *COMMANDS) == ""

"""The notebook runs as it stands, is kept without outputs, and says what is true."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quick_start.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]  # the package has no annotations


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_its_links_lead_somewhere() -> None:
    texts = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", texts)
    assert targets
    assert [target for target in targets if not (NOTEBOOK.parent / target).exists()] == []


@pytest.mark.slow
def test_it_runs_and_tells_digits_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = read()
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if "text" in output)
    shares = {name: float(share) for name, share in re.findall(r"(\w+): ([\d.]+)% flagged", printed)}
    assert set(shares) == {"digits", "shuffled", "photographs"}
    assert shares["digits"] < 10
    assert min(shares["shuffled"], shares["photographs"]) > 20

"""`opnp report`: the page, and the figures beside it, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opnp.cli.lazy_group import imported_command
from opnp.errors import DataFileError, MissingFileError
from tests.unit.report.report_world import demo_folder

LOADED = """
import sys
from opnp.report import write_report
write_report(sys.argv[1], sys.argv[2])
print(*sorted({"torch", "matplotlib"} & set(sys.modules)))
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a folder of the demo."""
    return demo_folder(tmp_path / "results")


def test_a_page_and_figures_are_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    arguments = [str(results), "--out", str(page), "--figures", str(figures)]
    imported_command("report")(arguments, standalone_mode=False)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == f"Report: {page}, {page.stat().st_size / 1e6:.1f} MB."
    drawn = sorted(figures.iterdir())
    assert f"{len(drawn)} figures are in {figures}." in shown
    imported_command("report")([*arguments, "--keep", "0.9", "--json"], standalone_mode=False)
    facts = json.loads(capsys.readouterr().out)
    assert facts["out"] == str(page)
    assert facts["bytes"] == page.stat().st_size
    assert sorted(facts["figures"]) == [str(path) for path in drawn]
    assert 'value="90.0"' in page.read_text(encoding="utf-8")


def test_figures_that_cannot_be_written_leave_no_page(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "figures"):
        arguments = [str(results), "--out", str(tmp_path / "page.html"), "--figures", str(place)]
        with pytest.raises(DataFileError, match="file is a file: name a folder for the figures"):
            imported_command("report")(arguments, standalone_mode=False)
        assert not (tmp_path / "page.html").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "none"), "--out", str(tmp_path / "page.html")]
    with pytest.raises(MissingFileError, match="no such folder of results"):
        imported_command("report")(arguments, standalone_mode=False)


def test_a_page_needs_neither_torch_nor_matplotlib(results: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(results), str(tmp_path / "page.html")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "\n", "")

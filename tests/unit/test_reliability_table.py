"""The table of `make test-long` counts what tests tell, and shows what failed; nothing that ran is left out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutation import record_of, totals
from tools.reliability import BEGIN, END, main, markdown, ordered, table, written

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "reliability.md"

TESTS = """
import pytest

@pytest.mark.parametrize("count", [3, 4])
def test_tells(tried, count):
    tried("files", "headers", count)

def test_fails(tried):
    tried("guarantees", "splits", 10)
    tried("files", "headers", 1)
    assert False

def test_silent():
    pass

def test_skipped(tried):
    pytest.skip("no accelerator")

def test_wrong_area(tried):
    with pytest.raises(ValueError, match="must be one of"):
        tried("weather", "clouds", 1)
    with pytest.raises(ValueError, match="at least 1"):
        tried("files", "nothing", 0)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the JUnit report of a run of `TESTS`."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_told.py").write_text(TESTS, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", f"--junit-xml={folder / 'told.xml'}", "-o", f"pythonpath={ROOT}"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    run = subprocess.run(command, cwd=folder, check=False, capture_output=True)
    assert run.returncode == 1, run.stdout
    return folder / "told.xml"


def test_rows_add_up_and_failures_are_counted(report: Path) -> None:
    rows, skipped = table(report)
    assert [(row.area, row.what, row.times, len(row.failed)) for row in ordered(rows)] == [
        ("guarantees", "splits", 10, 1),
        ("files", "headers", 8, 1),
        ("other", "`test_silent`", 1, 0),
        ("other", "`test_wrong_area`", 1, 0),
    ]
    assert [name.rpartition("::")[2] for name in skipped] == ["test_skipped"]


def test_the_exit_code_tells_of_failures_and_the_page_holds_the_table(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main([str(report), str(page)]) == 1
    printed = capsys.readouterr().out
    assert "failed: splits: " in printed
    assert "skipped: " in printed
    found = page.read_text(encoding="utf-8")
    assert found.startswith("# Before\n")
    assert found.endswith(f"{END}\nafter\n")
    assert "| | **all** | **20** | **2** |" in found
    assert "old" not in found
    assert written(found, ordered(table(report)[0])) == found


def test_of_a_test_in_two_reports_the_last_counts(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    begin, end = text.index("<failure"), text.index("</failure>") + len("</failure>")
    (tmp_path / "again.xml").write_text(text[:begin] + text[end:], encoding="utf-8")
    first, again = table(report)[0], table(report, tmp_path / "again.xml")[0]
    assert [(row.what, row.times) for row in again] == [(row.what, row.times) for row in first]
    assert sum(len(row.failed) for row in first) == 2
    assert sum(len(row.failed) for row in again) == 0
    assert table(tmp_path / "again.xml", report)[0] == first


def test_a_report_without_rows_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "none.xml").write_text("<testsuites><testsuite/></testsuites>", encoding="utf-8")
    assert main([str(tmp_path / "none.xml")]) == 1


def test_the_page_of_the_project_holds_a_table_without_failures() -> None:
    lines = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()
    assert lines[:2] == markdown([]).splitlines()[:2]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[2:]]
    *rows, total = cells
    assert rows
    assert {area for area, *_ in rows} >= {
        "guarantees",
        "numerics",
        "files",
        "inputs",
        "faults",
        "models",
        "contract",
        "serving",
    }
    assert all(failed == "0" for *_, failed in cells)
    assert sum(int(times.replace(",", "")) for _, _, times, _ in rows) == int(total[2].replace(",", ""))


def test_the_page_tells_the_mutants_of_the_record() -> None:
    total = json.loads((ROOT / "docs" / "records" / "mutation.json").read_text(encoding="utf-8"))["total"]
    noticed, share = total["killed"] + total["timeout"], 100 * total["score"]
    sentence = f"of {total['mutants']:,} changes {noticed:,} were noticed, {share:.1f} %."
    assert sentence in PAGE.read_text(encoding="utf-8")
    assert total["score"] >= 0.9


def test_the_record_of_mutants_holds_whole_files_alone() -> None:
    states = {"a.x_f__mutmut_1": "killed", "a.x_f__mutmut_2": "not checked"}
    states |= {"b.x_f__mutmut_1": "killed", "b.x_f__mutmut_2": "timeout", "b.xǁAǁg__mutmut_1": "survived"}
    results = "".join(f"    opnp.core.{mutant}: {status}\n" for mutant, status in states.items())
    found = record_of(results, {"opnp.core.b.xǁAǁg__mutmut_1": ("a + b", "a - b")})
    assert found["files"] == {"src/opnp/core/b.py": totals(3, 1, 1)}
    assert found["total"] == totals(3, 1, 1)
    changed = {"mutant": "xǁAǁg__mutmut_1", "original": "a + b", "mutated": "a - b"}
    assert found["survivors"] == [{"file": "src/opnp/core/b.py", **changed}]

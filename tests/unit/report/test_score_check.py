"""What the page says of scores that are missing, or not those of its record."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from opnp.data import write_score_table
from opnp.report import read_results, write_report
from opnp.report.content import score_faults
from opnp.values.figures import DetectionFigures
from tests.unit.report.report_world import demo_record, scores_by_set

METHODS = ("Energy", "OPNP")


def folder_with(
    folder: Path, *, without: tuple[tuple[str, str], ...] = (), stale: tuple[tuple[str, str], ...] = ()
) -> Path:
    """Return a folder whose record is that of its scores, but for sets that are left out and sets that are stale."""
    record = demo_record(scores_by_set())
    columns: dict[str, list[object]] = {name: [] for name in ("model", "method", "set", "score")}
    rows = []
    for row in record.methods:
        scores = scores_by_set(METHODS.index(row.method))
        threshold = np.sort(scores["test"])[285 - 1]  # 95 % of 300
        detection = {}
        for name, values in scores.items():
            if name != "test":
                fpr95 = float(np.mean(values <= threshold))
                off = 1 / len(values) if (row.method, name) in stale else 0.0
                detection[name.removeprefix("ood_")] = DetectionFigures(fpr95 + off, 0.5, 0.9)
            if (row.method, name) not in without:
                columns["model"] += ["demo"] * len(values)
                columns["method"] += [row.method] * len(values)
                columns["set"] += [name] * len(values)
                columns["score"] += values.tolist()
        rows.append(replace(row, detection=detection))
    folder.mkdir()
    (folder / "results.json").write_text(replace(record, methods=tuple(rows)).to_json(), encoding="utf-8")
    write_score_table(folder / "scores.csv", columns)
    return folder


def faults(folder: Path) -> tuple[str, ...]:
    results = read_results(folder)
    return score_faults(results, results.models[0])


def test_scores_of_the_record_have_no_faults(tmp_path: Path) -> None:
    assert faults(folder_with(tmp_path / "results")) == ()


@pytest.mark.parametrize("method", METHODS)
def test_missing_sets_and_methods_are_named(tmp_path: Path, method: str) -> None:
    [fault] = faults(folder_with(tmp_path / "set", without=((method, "ood_far"),)))
    assert fault.startswith(f"The file of scores lacks far for {method}: ")
    [fault] = faults(folder_with(tmp_path / "test", without=((method, "test"),)))
    assert fault.startswith(f"The file of scores lacks scores of ID samples of {method}: ")
    every = tuple((method, name) for name in scores_by_set())
    [fault] = faults(folder_with(tmp_path / "method", without=every))
    assert fault.startswith(f"The file of scores lacks any scores of {method}: ")


def test_one_sample_s_difference_to_the_record_is_stale_and_the_page_says_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "results", stale=(("OPNP", "ood_near"), ("Energy", "ood_far")))
    [fault] = faults(folder)
    assert "FPR95 differs for OPNP on near and Energy on far." in fault
    page = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<p class="notice fault">{fault}</p>' in page


def test_without_scores_there_is_nothing_to_say(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "results")
    (folder / "scores.csv").unlink()
    assert faults(folder) == ()

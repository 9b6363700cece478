"""Records that are each of the right form, and do not fit together: a report says so, or is drawn."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from opnp.errors import DataFileError, OpnpError
from opnp.report import write_figures, write_report
from tests.in_process import Opnp
from tests.reliability.files_world import KINDS, Kind, chance
from tests.tried import Tried

RECORDS = [each for each in KINDS if each.name.startswith("records of")]
NUMBERS = [0, 1, -1, 0.5, 1e6, 1e-300, 1e149, -1e149, 2**62]
TEXTS = ["", "x", "test", "ood_x", "\0", "<script>alert(1)</script>", "a" * 3000, "\n", "%s", "$x_$", "\\frac{", "../x"]


def holders(values: Any) -> list[Any]:
    """Return every list and every mapping in JSON that holds something, outer ones first."""
    found, level = [], [values]
    while level:
        level = [each for each in level if isinstance(each, dict | list) and each]
        found += level
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return found


def mutated(values: Any, seed: str) -> Any:
    """Return a copy with one value that is another of the same kind, is gone, is there twice or has another name."""
    draw, result = chance(seed), copy.deepcopy(values)
    holder = holders(result)
    inner = holder[int(draw.integers(len(holder)))]
    key = list(inner)[int(draw.integers(len(inner)))] if isinstance(inner, dict) else int(draw.integers(len(inner)))
    value = inner[key]
    if isinstance(value, bool):
        inner[key] = not value
    elif isinstance(value, int | float):
        inner[key] = NUMBERS[int(draw.integers(len(NUMBERS)))]
    elif isinstance(value, str):
        inner[key] = TEXTS[int(draw.integers(len(TEXTS)))]
    elif draw.random() < 0.5:
        del inner[key]
    elif isinstance(inner, dict):
        inner[TEXTS[int(draw.integers(len(TEXTS)))]] = inner.pop(key)
    else:
        inner.append(copy.deepcopy(value))
    return result


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.long)])
@pytest.mark.parametrize("each", RECORDS, ids=lambda each: each.name)
def test_a_report_of_a_changed_record_is_drawn_or_refused(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    tried("files", f"pages of {each.name} with a value changed, removed or doubled", trials)
    path = own / each.file
    values = json.loads(path.read_text(encoding="utf-8"))
    for number in range(trials):
        path.write_text(json.dumps(mutated(values, f"{each.name} {number}")), encoding="utf-8")
        try:
            page = write_report(path.parent, own / "page.html").read_text(encoding="utf-8")
        except OpnpError:
            continue
        assert "<script>alert(1)</script>" not in page


@pytest.mark.long
def test_figures_of_a_changed_record_are_drawn_or_refused(own: Path, tried: Tried) -> None:
    tried("files", "figures of records with a value changed, removed or doubled", 4)
    path = own / "demo" / "pictures.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for number in range(4):
        path.write_text(json.dumps(mutated(values, f"figures {number}")), encoding="utf-8")
        try:
            write_figures(path.parent, own / "figures", formats=["svg"])
        except OpnpError:
            continue


@pytest.mark.reliability
def test_records_that_do_not_fit_together_are_named(own: Path, tried: Tried, opnp: Opnp) -> None:
    """The page of a picture whose bins have more edges than counts cannot be drawn."""
    tried("files", "records whose parts do not fit together", 2)
    path = own / "demo" / "pictures.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["models"][0]["weight_sensitivity"]["kept"].pop()
    values["models"][0]["neurons"]["ranks"] = []
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataFileError, match="demo holds records that do not fit together"):
        write_report(own / "demo", own / "page.html")
    found = opnp("report", own / "demo", "--out", own / "page.html")
    assert found.code == 2
    assert found.err.startswith("opnp: ")
    assert not (own / "page.html").exists()


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("demo/results.json", ("methods", 0, "accuracy"), 1.5),
        ("demo/results.json", ("methods", 0, "threshold"), "-5.0"),
        ("bench/results.json", ("seed",), 2**63),
        ("fit/fit.json", ("keep",), 95),
        ("fit/fit.json", ("calibration_scores", 0), "1.0"),
        ("swept/sweep.json", ("base", "scope"), "row"),
        ("demo/pictures.json", ("models", 0, "gallery", 0, "items", 0, "is_ood"), 1),
    ],
)
def test_a_wrong_value_is_named_by_its_place(
    own: Path, name: str, place: tuple[str | int, ...], value: object, tried: Tried
) -> None:
    tried("files", "records with a value out of range or of another type")
    path = own / name
    values = json.loads(path.read_text(encoding="utf-8"))
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    with pytest.raises(DataFileError) as caught:
        write_report(path.parent, own / "page.html")
    assert "whole number of more than 64 bits" in str(caught.value) or f"at `${written}`" in str(caught.value)
    assert path.name in str(caught.value)

"""The demo does the whole job: real training, real verdicts, files that can be used."""

import csv
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opnp import OPNP, PANEL, auroc, fpr_at_tpr
from opnp.bench.demo import DEMO_FILES, small_cnn
from opnp.cli.app import named_command
from opnp.data import read_features
from opnp.values.pictures import PictureRecord
from tests.in_process import Opnp, done
from tests.made_once import made_once


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the command leaves: the demo, its report, and the facts that it printed."""

    def run(folder: Path) -> None:
        arguments = ["--out", str(folder / "demo"), "--report", str(folder / "report.html"), "--json"]
        with redirect_stdout(StringIO()) as printed:
            named_command("demo").main(args=arguments, standalone_mode=False)
        (folder / "facts.json").write_text(printed.getvalue(), encoding="utf-8")

    return made_once(tmp_path_factory, "demo", run)


@pytest.fixture
def folder(made: Path) -> Path:
    return made / "demo"


@pytest.mark.slow
def test_the_folder_holds_what_is_guarded(folder: Path) -> None:
    """A file that is missing in the list would be written over where others wrote one of its name."""
    assert {path.name for path in folder.iterdir()} == {*DEMO_FILES}


def test_the_table_follows_from_the_files(folder: Path) -> None:
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    row = next(method for method in record["methods"] if method["method"] == "OPNP()")
    scores: dict[str, list[float]] = {}
    flagged: dict[str, list[bool]] = {}
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            scores.setdefault(line["set"], []).append(float(line["score"]))
            flagged.setdefault(line["set"], []).append(line["is_ood"] == "True")
    inside = torch.tensor(scores["id_test"], dtype=torch.float64)
    for place, result in row["detection"].items():
        outside = torch.tensor(scores[f"ood_{place}"], dtype=torch.float64)
        assert result["auroc"] == auroc(inside, outside)
        assert result["fpr95"] == fpr_at_tpr(inside, outside)
        assert result["fpr95_ood_positive"] == fpr_at_tpr(inside, outside, positive="ood")
    assert row["flagged_id"] == sum(flagged["id_test"]) / len(flagged["id_test"])
    assert record["counts"]["test"] == len(inside)


def test_an_input_of_each_set_is_shown_with_verdict_and_reason(folder: Path) -> None:
    inputs = json.loads((folder / "results.json").read_text(encoding="utf-8"))["inputs"]
    assert [(each["set"], each["is_ood"]) for each in inputs] == [
        ("test", False),
        ("ood_near", True),
        ("ood_far", True),
    ]
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for each in inputs:
        own = [row for row in rows if row["set"] == each["set"].replace("test", "id_test")]
        (row,) = [row for row in own if int(row["index"]) == each["index"]]
        assert float(row["p_value"]) == pytest.approx(each["p_value"], abs=0.02)
        smaller = sum(float(other["score"]) < float(row["score"]) for other in own)
        assert abs(smaller - len(own) / 2) <= 2, "the median of its set"
        assert each["member"] in PANEL
        assert each["share"] > 1 / len(PANEL)


def test_the_model_has_learnt_and_the_rows_differ(folder: Path) -> None:
    methods = json.loads((folder / "results.json").read_text(encoding="utf-8"))["methods"]
    assert [method["method"] for method in methods] == ["OPNP()", "Energy", "OPP", "ONP", "OPNP"]
    assert min(method["accuracy"] for method in methods) > 0.97
    assert len({method["detection"]["near"]["auroc"] for method in methods}) == len(methods)
    assert max(method["flagged_id"] for method in methods) < 0.12


def test_model_and_features_that_it_leaves_agree_with_its_detector(folder: Path) -> None:
    model = small_cnn()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    detector = OPNP.load(folder / "detector.safetensors", model=model)
    test = read_features(folder / "test.safetensors")
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "id_test"]
    expected = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(detector.score_features(test.features), expected, rtol=1e-5, atol=1e-5)
    images = torch.rand(3, 1, 8, 8)
    assert detector.score(images).shape == (3,)


def test_the_command_names_what_it_left(made: Path) -> None:
    facts = json.loads((made / "facts.json").read_text(encoding="utf-8"))
    assert facts["out"] == str(made / "demo")
    assert [method["method"] for method in facts["methods"]] == ["OPNP()", "Energy", "OPP", "ONP", "OPNP"]


def test_the_report_shows_what_the_folder_holds(opnp: Opnp, made: Path, folder: Path, tmp_path: Path) -> None:
    page = made / "report.html"
    done(opnp, "report", folder, "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    (pictures,) = PictureRecord.from_json((folder / "pictures.json").read_text(encoding="utf-8")).models
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    threshold = next(row["threshold"] for row in record["methods"] if row["method"] == "OPNP()")
    assert [each.set for each in pictures.gallery] == ["test", "ood_near", "ood_far"]
    for each in pictures.gallery:
        scores = [item.score for item in each.items]
        assert scores == sorted(scores, reverse=each.set == "test")
        assert [item.is_ood for item in each.items] == [score > threshold for score in scores]
        assert all(sum(member.share for member in item.members) == pytest.approx(1) for item in each.items)
        assert len({item.image for item in each.items}) > 1
        assert all(item.image in page.read_text(encoding="utf-8") for item in each.items)

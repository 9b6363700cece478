"""The demo does the whole job: real training, real verdicts, files that can be used."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opnp import OPNP, auroc, fpr_at_tpr
from opnp.bench.demo import DEMO_FILES, small_cnn
from opnp.data import read_features
from tests.in_process import Opnp


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from opnp.bench import run_demo

    out = tmp_path_factory.mktemp("demo")
    run_demo(out)
    return out


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


def test_the_command_names_what_it_left(opnp: Opnp, tmp_path: Path) -> None:
    outcome = opnp("demo", "--out", tmp_path / "here", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["out"] == str(tmp_path / "here")
    assert (tmp_path / "here" / "detector.safetensors").is_file()
    assert [method["method"] for method in facts["methods"]] == ["OPNP()", "Energy", "OPP", "ONP", "OPNP"]

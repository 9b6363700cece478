"""Commands on folders that need no labels, and on files whose names are no UTF-8."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from tests.in_process import Opnp
from tests.unit.bench.image_world import OPTIONS, class_images, write_module
from tests.unit.data.image_files import save_image, write_tensors

MODEL = ("--model", "tinynets:net", *OPTIONS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of models, training images, and a tree that has no order of classes."""
    monkeypatch.chdir(write_module(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    write_tensors(tmp_path / "train.safetensors", *class_images(60, seed=0))
    images, _ = class_images(5, seed=3)
    names = ("loose.png", "ant/a.png", "0/b.png", "00/c.png", os.fsdecode(b"ant/\xff\xfe.png"))
    for name, image in zip(names, images, strict=True):
        save_image(tmp_path / "tree" / name, image)
    (tmp_path / "tree" / "empty").mkdir()
    return tmp_path


NAMES = ["loose.png", "0/b.png", "00/c.png", "ant/a.png", "ant/\\xff\\xfe.png"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_tree_of_any_form_is_scored(opnp: Opnp, here: Path, ending: str) -> None:
    fit = opnp("fit", *MODEL, "--data", "train.safetensors", "--out", "d.safetensors", "--json")
    assert fit.code == 0, fit.err
    out = f"scores.{ending}"
    outcome = opnp("score", "--detector", "d.safetensors", *MODEL, "--data", "tree", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["samples"] == 5
    if ending == "csv":
        with (here / out).open(encoding="utf-8", newline="") as table:
            assert [row["name"] for row in csv.DictReader(table)] == NAMES


def test_a_tree_of_any_form_is_cached_as_ood_and_kept(opnp: Opnp, here: Path) -> None:
    command = ("cache", *MODEL, "--train", "train.safetensors", "--ood", "tree=tree", "--no-odin", "--out", "out")
    for is_new in (True, False):
        outcome = opnp(*command, "--json")
        assert outcome.code == 0, outcome.err
        facts = json.loads(outcome.out)["sets"]["ood_tree"]
        assert (facts["samples"], facts["is_new"]) == (5, is_new)
    refused = opnp("cache", *MODEL, "--train", "tree", "--no-odin", "--out", str(here / "other"))
    assert refused.code == 2
    assert "holds images (loose.png, ...) beside folders with images" in refused.err

"""``opnp cache`` and ``opnp bench --model`` for every kind of inputs: one set of features, whatever it is read from."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from opnp.bench.odin import read_odin
from opnp.data import read_features
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import write_texts
from tests.unit.adapters.hub_folders import TEXT_CLASSES, write_bert
from tests.unit.bench.image_world import OPTIONS, class_images, write_module
from tests.unit.data.image_files import save_image, write_tensors

MODEL = ("--model", "tinynets:net", *OPTIONS)
HF: Any = datasets  # ships no types


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of models."""
    monkeypatch.chdir(write_module(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    HF.disable_progress_bars()
    return tmp_path


def write_everywhere(folder: Path, rows: int) -> list[str]:
    """Write the same images in each form, and return the paths; the first is a tensor."""
    images, labels = class_images(rows, seed=0)
    labels, order = labels.sort(stable=True)
    images = images[order].contiguous()
    write_tensors(folder / "some.safetensors", images, labels)
    np.savez(folder / "some.npz", images=images.numpy(), labels=labels.numpy())
    np.save(folder / "some.npy", images.numpy())
    files = []
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        files.append(f"tree/{label}/{row:02d}.png")
        save_image(folder / files[-1], image)
    (folder / "some.txt").write_text("\n".join(files), encoding="utf-8")
    with (folder / "some.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(zip(files, labels.tolist(), strict=True))
    columns = {"image": [str(folder / file) for file in files], "label": labels.tolist()}
    data = HF.Dataset.from_dict(columns, features=HF.Features({"image": HF.Image(), "label": HF.Value("int64")}))
    data.save_to_disk(folder / "saved")
    return ["some.safetensors", "some.npz", "tree", "some.csv", "saved", "some.npy", "some.txt"]


def test_one_set_of_features_whatever_it_is_read_from(opnp: Opnp, here: Path) -> None:
    contents, features = [], []
    for place in write_everywhere(here, 10):
        outcome = opnp("cache", *MODEL, "--test", place, "--out", f"out-{place}", "--no-odin", "--json")
        assert outcome.code == 0, outcome.err
        facts = json.loads(outcome.out)["sets"]["test"]
        assert (facts["samples"], facts["unreadable"]) == (10, 0)
        file = here / f"out-{place}" / "test.safetensors"
        contents.append(file.read_bytes())
        features.append(read_features(file).features)
        again = opnp("cache", *MODEL, "--test", place, "--out", f"out-{place}", "--no-odin", "--json")
        assert json.loads(again.out)["sets"]["test"]["is_new"] is False
    assert contents[:5] == [contents[0]] * 5
    assert all(torch.equal(features[0], each) for each in features[5:])  # without labels


def test_texts_are_cached_and_judged(opnp: Opnp, here: Path) -> None:
    write_bert(here / "bert")
    write_texts(here / "train.jsonl", 60, seed=0, classes=TEXT_CLASSES)
    write_texts(here / "test.jsonl", 40, seed=1, broken=2, classes=TEXT_CLASSES)
    HF.Dataset.from_dict({"text": ["very very", "not a film", None, "is"]}).save_to_disk(here / "other")
    model = ("--model", "hf:bert", "--batch-size", 8)
    outcome = done(
        opnp,
        *("cache", *model, "--train", "train.jsonl", "--test", "test.jsonl", "--ood", "other=other", "--out", "out"),
        "--json",
    )
    facts = json.loads(outcome.out)
    assert {name: (each["samples"], each["unreadable"]) for name, each in facts["sets"].items()} == {
        "train": (60, 0),
        "test": (40, 2),
        "ood_other": (3, 1),
    }
    assert facts["odin"] == []
    assert facts["odin_reason"].startswith("ODIN changes the inputs by a small step")
    assert "opnp: test: 2 of 42 inputs could not be read: line 1 (no text), line 2 (no text)\n" in outcome.err
    assert "opnp: ood_other: 1 of 4 inputs could not be read: 2 (no text)\n" in outcome.err
    found = read_features(here / "out" / "test.safetensors")
    assert found.features.shape == (40, 16)
    assert found.labels is not None
    assert found.labels.tolist() == [row % TEXT_CLASSES for row in range(40)]
    source = json.loads((here / "out" / "source.json").read_text(encoding="utf-8"))
    assert source["model"]["preprocessing"]["tokenizer"].startswith("BertTokenizer")
    assert "transformers" in source["model"]["versions"]
    assert source["sets"]["ood_other"]["unreadable"] == [["2", "no text"]]
    odin = read_odin(here / "out")
    assert odin is not None
    assert odin.about.reason == facts["odin_reason"]
    bench = ("bench", *model, "--id", ".", "--ood", "other=other", "--out", "results")
    judged = done(opnp, *bench, "--methods", "energy,odin", "--json")
    rows = {row["method"]: row for row in json.loads(judged.out)["models"][0]["methods"]}
    assert rows["Energy"]["status"] == "ok"
    assert rows["ODIN temperature=1000 eps=0.0014"]["reason"] == odin.about.reason
    strict = refused(opnp, *bench, "--strict")
    assert "line 1 cannot be read (no text): mend or remove it" in strict


def test_a_saved_data_set_of_splits_needs_one_of_them(opnp: Opnp, here: Path) -> None:
    write_bert(here / "bert")
    data = HF.Dataset.from_dict({"text": ["a"]})
    HF.DatasetDict({"train": data, "test": data}).save_to_disk(here / "both")
    message = refused(opnp, "cache", "--test", "both", "--model", "hf:bert", "--out", "out")
    assert "both holds the splits train, test: give one of them" in message

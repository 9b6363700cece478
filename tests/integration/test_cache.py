"""``opnp cache``: from a model and inputs of every kind to files that the other commands read."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from opnp.bench.odin import read_odin
from opnp.data import read_features, read_head
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import write_texts
from tests.unit.adapters.hub_folders import TEXT_CLASSES, write_bert
from tests.unit.bench.image_world import (
    OPTIONS,
    class_images,
    tiny_model,
    write_broken_tree,
    write_images,
    write_module,
)
from tests.unit.data.image_files import save_image, write_tensors

HF: Any = datasets  # ships no types
MODEL = ("cache", "--model", "tinynets:net")
SETS = ("--train", "train.safetensors", "--test", "test.safetensors", "--ood", "noise=noise.safetensors")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of models and some images."""
    monkeypatch.chdir(write_module(write_images(tmp_path)))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    HF.disable_progress_bars()
    return tmp_path


def test_features_head_and_record_are_written(opnp: Opnp, here: Path) -> None:
    outcome = done(opnp, *MODEL, *OPTIONS, *SETS, "--ood", "grey=grey.safetensors", "--out", "out", "--json")
    facts = json.loads(outcome.out)
    assert (facts["model"], facts["head"], facts["dtype"], facts["out"]) == ("tinynets:net", "6", "float16", "out")
    assert {name: item["samples"] for name, item in facts["sets"].items()} == {
        "train": 120,
        "test": 120,
        "ood_noise": 60,
        "ood_grey": 50,
    }
    assert facts["odin"] == ["ood_grey", "ood_noise", "test"]
    assert all(item["is_new"] for item in facts["sets"].values())
    assert 0 < facts["sets"]["test"]["accuracy"] < 1
    assert facts["sets"]["ood_grey"]["accuracy"] is None
    assert read_features(here / "out" / "train.safetensors").features.dtype == torch.float16
    assert torch.equal(read_head(here / "out" / "head.safetensors").weight, list(tiny_model().parameters())[-2])


def test_without_odin_it_can_be_left_out(opnp: Opnp, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None)
    message = refused(opnp, *MODEL, *OPTIONS, *SETS, "--out", "out")
    assert "pip install 'opnp[bench]'" in message
    assert "--no-odin" in message
    done(opnp, *MODEL, *OPTIONS, *SETS, "--out", "out", "--no-odin")
    assert not (here / "out" / "odin.safetensors").exists()


def test_a_folder_tree_of_timm_or_torchvision(opnp: Opnp, here: Path) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        source = timm.create_model("test_vit", num_classes=4)
    save_file(source.state_dict(), here / "vit.safetensors")
    for label in (0, 3):
        (here / "tree" / f"{label:03d}").mkdir(parents=True)
        for index, image in enumerate(class_images(2, seed=label)[0]):
            Image.fromarray(image.numpy()).resize((50, 40)).save(here / "tree" / f"{label:03d}" / f"{index}.jpg")
    done(
        opnp,
        *("cache", "--model", "timm:test_vit", "--weights", "vit.safetensors", "--test", "tree", "--out", "out"),
        *("--dtype", "float32", "--batch-size", 3, "--json"),
    )
    found = read_features(here / "out" / "test.safetensors")
    assert found.features.dtype == torch.float32
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 3, 3]
    source_json = json.loads((here / "out" / "source.json").read_text(encoding="utf-8"))
    assert source_json["model"]["preprocessing"]["size"] == 160
    assert "timm" in source_json["model"]["versions"]
    assert str(here) not in json.dumps(source_json)


def test_unreadable_images_are_listed_and_counted_and_nothing_but_those_is_an_error(opnp: Opnp, here: Path) -> None:
    write_broken_tree(here / "tree", [1, 2, 6])
    command = (*MODEL, *OPTIONS, "--test", "tree", "--out", "out")
    listed = ", ".join(f"{name}.png (no image)" for name in ("1/1", "2/2", "2/6"))
    message = f"opnp: test: 3 of 7 inputs could not be read: {listed}\n"
    outcome = opnp(*command, "--json")
    assert (outcome.code, outcome.err) == (0, message)
    facts = json.loads(outcome.out)["sets"]["test"]
    assert (facts["samples"], facts["unreadable"], facts["is_new"]) == (4, 3, True)
    found = read_features(here / "out" / "test.safetensors")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 3]
    odin = read_odin(here / "out")
    assert odin is not None
    assert (odin.about.reason, len(odin.scores["test"])) == ("", 4)
    again = opnp(*command)  # what is kept is told as well
    assert (again.code, again.err) == (0, message)
    assert "kept" in again.out
    strict = opnp(*command, "--strict")
    assert (strict.code, strict.err) == (2, "opnp: test: 1/1.png cannot be read (no image): mend or remove it.\n")
    assert (here / "out" / "test.safetensors").exists()
    write_broken_tree(here / "tree", [])
    mended = opnp(*command, "--strict", "--json")
    assert (mended.code, mended.err) == (0, "")
    facts = json.loads(mended.out)["sets"]["test"]
    assert (facts["samples"], facts["unreadable"], facts["is_new"]) == (7, 0, True)


def test_a_model_that_odin_fails_on_is_cached_all_the_same(
    opnp: Opnp, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        message = "no gradient here\nC++ stack of /some/place"
        raise RuntimeError(message)

    monkeypatch.setattr("opnp.bench.odin.odin_scores", failing)
    outcome = done(opnp, *MODEL, *OPTIONS, *SETS, "--out", "out")
    assert "ODIN did not score every set: ODIN raised RuntimeError: no gradient here\n" in outcome.err
    shown = opnp("bench", "--features", "out", "--out", "results", "--methods", "energy,odin")
    assert "ODIN temperature=1000 eps=0.0014 did not run: ODIN raised RuntimeError: no gradient here" in shown.err
    assert "/some/place" not in (here / "results" / "results.json").read_text(encoding="utf-8")


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
        outcome = opnp(*MODEL, *OPTIONS, "--test", place, "--out", f"out-{place}", "--no-odin", "--json")
        assert outcome.code == 0, outcome.err
        facts = json.loads(outcome.out)["sets"]["test"]
        assert (facts["samples"], facts["unreadable"]) == (10, 0)
        file = here / f"out-{place}" / "test.safetensors"
        contents.append(file.read_bytes())
        features.append(read_features(file).features)
        again = opnp(*MODEL, *OPTIONS, "--test", place, "--out", f"out-{place}", "--no-odin", "--json")
        assert json.loads(again.out)["sets"]["test"]["is_new"] is False
    assert contents[:5] == [contents[0]] * 5
    assert all(torch.equal(features[0], each) for each in features[5:])  # without labels


def test_texts_are_cached_and_judged(opnp: Opnp, here: Path) -> None:
    write_bert(here / "bert")
    (here / "texts").mkdir()
    write_texts(here / "texts" / "train.jsonl", 60, seed=0, classes=TEXT_CLASSES)
    write_texts(here / "texts" / "test.jsonl", 40, seed=1, broken=2, classes=TEXT_CLASSES)
    HF.Dataset.from_dict({"text": ["very very", "not a film", None, "is"]}).save_to_disk(here / "other")
    model = ("--model", "hf:bert", "--batch-size", 8)
    outcome = done(
        opnp,
        *(
            "cache",
            *model,
            "--train",
            "texts/train.jsonl",
            "--test",
            "texts/test.jsonl",
            "--ood",
            "other=other",
            "--out",
            "out",
        ),
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
    bench = ("bench", *model, "--id", "texts", "--ood", "other=other", "--out", "results")
    judged = done(opnp, *bench, "--methods", "energy,odin", "--json")
    rows = {row["method"]: row for row in json.loads(judged.out)["models"][0]["methods"]}
    assert rows["Energy"]["status"] == "ok"
    assert rows["ODIN temperature=1000 eps=0.0014"]["reason"] == odin.about.reason
    strict = refused(opnp, *bench, "--strict")
    assert "line 1 cannot be read (no text): mend or remove it" in strict

"""``opnp bench --model``: the benchmark from a model and images, with features that are computed once."""

import json
import sys
from pathlib import Path

import pytest

from opnp.data import InputSet
from opnp.values.bench import BenchRecord
from tests.in_process import Opnp, done, refused
from tests.unit.bench.image_world import OPTIONS, class_images, write_images, write_module
from tests.unit.data.image_files import save_image, write_tensors

MODEL = ("bench", "--model", "tinynets:net", *OPTIONS)
DATA = ("--id", "test.safetensors", "--train", "train.safetensors", "--ood", "noise=noise.safetensors")
METHODS = ("--methods", "reference,baselines,product")
ODIN = "ODIN temperature=1000 eps=0.0014"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of models and some images."""
    monkeypatch.chdir(write_module(write_images(tmp_path)))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return tmp_path


def record_in(folder: Path) -> BenchRecord:
    return BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8"))


def test_twice_gives_the_same_bytes_and_no_absolute_path(
    opnp: Opnp, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opnp(*MODEL, *DATA, *METHODS, "--out", "one").code == 0
    absolute = [here / text if (here / str(text)).exists() else text for text in DATA]
    absolute[-1] = f"noise={here / 'noise.safetensors'}"
    done(opnp, *MODEL, *absolute, *METHODS, "--out", here / "deep" / "other")
    monkeypatch.delattr(InputSet, "read")  # no image is decoded again
    again = opnp(*MODEL, *DATA, *METHODS, "--out", "one")
    assert "train, test, ood_noise kept" in again.err
    for name in ("results.json", "results.md", "scores.parquet"):
        assert (here / "one" / name).read_bytes() == (here / "deep" / "other" / name).read_bytes(), name
    text = (here / "one" / "results.json").read_text(encoding="utf-8")
    assert str(here) not in text
    assert "NaN" not in text
    assert str(here) not in (here / "one" / "features" / "tinynets-net" / "source.json").read_text(encoding="utf-8")


def test_the_record_is_that_of_the_cached_features(opnp: Opnp, here: Path) -> None:
    assert opnp(*MODEL, *DATA, *METHODS, "--out", "one").code == 0
    features = here / "one" / "features" / "tinynets-net"
    assert opnp("bench", "--features", features, *METHODS, "--out", "other").code == 0
    assert (here / "one" / "results.json").read_bytes() == (here / "other" / "results.json").read_bytes()
    (model,) = record_in(here / "one").models
    assert (model.model, model.classes, model.features) == ("tinynets-net", 4, 48)
    assert {name: item.samples for name, item in model.data.items()} == {
        "head": 4,
        "train": 120,
        "test": 120,
        "ood_noise": 60,
    }
    assert model.row(ODIN).status == "ok"
    timings = json.loads((here / "one" / "timings.json").read_text(encoding="utf-8"))
    assert ODIN not in timings["tinynets-net"]
    assert "Energy" in timings["tinynets-net"]


def test_an_id_folder_may_hold_train_and_test(opnp: Opnp, here: Path) -> None:
    for seed, name in enumerate(("train", "val")):
        for index, (image, label) in enumerate(zip(*class_images(24, seed=seed), strict=True)):
            save_image(here / "id" / name / str(int(label)) / f"{index:02d}.png", image)
    arguments = (*MODEL, "--ood", "noise=noise.safetensors", "--methods", "energy", "--out", "out")
    done(opnp, *arguments, "--id", "id")
    (model,) = record_in(here / "out").models
    assert model.data["test"].samples == 24
    alone = refused(opnp, *arguments, "--id", "id/val")
    assert "val holds no train: it must hold both train and test (or val)" in alone
    file = opnp(*arguments, "--id", "test.safetensors")
    assert "holds test inputs alone: give the training inputs with `--train PATH`" in file.err


def test_other_ood_sets_do_not_see_those_of_before(opnp: Opnp, here: Path) -> None:
    energy = ("--methods", "energy", "--out", "out")
    assert opnp(*MODEL, *DATA, *energy).code == 0
    grey = ("--id", "test.safetensors", "--train", "train.safetensors", "--ood", "grey=grey.safetensors")
    outcome = opnp(*MODEL, *grey, *energy)
    assert "ood_grey computed; train, test kept" in outcome.err
    assert set(record_in(here / "out").models[0].nearness) == {"grey"}
    assert opnp(*MODEL, *DATA, *energy).err.count("kept") == 1
    assert set(record_in(here / "out").models[0].nearness) == {"noise"}


def test_changed_images_and_another_model_are_never_mixed_up(opnp: Opnp, here: Path) -> None:
    energy = ("--methods", "energy")
    assert opnp(*MODEL, *DATA, *energy, "--out", "out").code == 0
    images, labels = class_images(120, seed=1)
    write_tensors(here / "test.safetensors", images.flip(0), labels.flip(0))
    assert "test computed; train, ood_noise kept" in opnp(*MODEL, *DATA, *energy, "--out", "out").err
    module = here / "tinynets.py"
    module.write_text(module.read_text(encoding="utf-8").replace("model()", "model(seed=3)"), encoding="utf-8")
    sys.modules.pop("tinynets")
    replaced = opnp(*MODEL, *DATA, *energy, "--out", "out")
    assert "train, test, ood_noise computed." in replaced.err
    assert opnp(*MODEL, *DATA, *energy, "--out", "fresh").code == 0
    assert (here / "out" / "results.json").read_bytes() == (here / "fresh" / "results.json").read_bytes()


def test_odin_is_computed_if_it_is_asked_for(opnp: Opnp, here: Path) -> None:
    assert opnp(*MODEL, *DATA, "--methods", "energy,knn", "--out", "out").code == 0
    features = here / "out" / "features" / "tinynets-net"
    assert not (features / "odin.safetensors").exists()
    outcome = done(opnp, *MODEL, *DATA, "--methods", "odin", "--out", "out", "--json")
    assert outcome.err == ""
    assert BenchRecord.from_json(outcome.out) == record_in(here / "out")
    assert [row.method for row in record_in(here / "out").models[0].methods] == [ODIN]
    assert record_in(here / "out").models[0].row(ODIN).settings["norm_std"] == [0.25, 0.2, 0.1]

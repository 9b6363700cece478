"""``opnp bench``: from a folder of features, or a model and images, to record, tables, scores and times."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opnp import auroc, fpr_at_tpr
from opnp.bench import results_markdown
from opnp.bench.run import BENCH_FILES
from opnp.data import InputSet
from opnp.values.bench import BenchRecord
from tests.in_process import Opnp, done, refused
from tests.unit.bench.bench_world import write_world
from tests.unit.bench.image_world import OPTIONS, class_images, write_images, write_module
from tests.unit.data.image_files import save_image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_world(folder / "one")
    write_world(folder / "two", rows=300)
    return folder


@pytest.fixture(scope="module")
def results(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from opnp.bench import run_bench

    out = tmp_path_factory.mktemp("results") / "new"
    run_bench(world, out, near=["cifar100"])
    return out


def record_in(folder: Path) -> BenchRecord:
    return BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8"))


def scores_in(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the arrays `index` and `score` by model, set and method, in the order of the file."""
    from pyarrow import parquet

    table = parquet.read_table(folder / "scores.parquet")
    assert table.column_names == ["model", "set", "method", "index", "score"]
    columns = table.to_pydict()
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for *key, index, score in zip(*columns.values(), strict=True):
        part = found.setdefault((key[0], key[1], key[2]), {"index": [], "score": []})
        part["index"].append(index)
        part["score"].append(score)
    return {key: {name: np.asarray(values) for name, values in part.items()} for key, part in found.items()}


def test_the_figures_follow_from_the_scores(results: Path) -> None:
    assert {path.name for path in results.iterdir()} == {*BENCH_FILES}  # what is missing there would be written over
    scores = scores_in(results)
    for model in record_in(results).models:
        for row in model.methods:
            assert row.status == "ok", row.reason
            assert row.detection is not None
            inside = torch.from_numpy(scores[model.model, "test", row.method]["score"])
            assert len(inside) == model.id_samples[row.split]
            for name, figures in row.detection.items():
                outside = scores[model.model, f"ood_{name}", row.method]["score"]
                assert figures.auroc == auroc(inside, torch.from_numpy(outside))
                assert figures.fpr95 == fpr_at_tpr(inside, torch.from_numpy(outside))


def test_the_rest_is_what_validation_did_not_take(results: Path) -> None:
    scores = scores_in(results)
    model = record_in(results).models[0]
    assert (model.validation_samples, model.id_samples) == (70, {"test": 240, "rest": 170})
    rest = scores["one", "test", "OPNP()"]["index"].tolist()
    assert len(set(rest)) == 170
    assert rest == scores["one", "test", "Energy, rest of test"]["index"].tolist() == sorted(rest)
    whole, part = scores["one", "test", "Energy"], scores["one", "test", "Energy, rest of test"]
    assert part["score"].tolist() == pytest.approx(whole["score"][rest].tolist(), rel=1e-12)


def test_a_baseline_on_the_pruned_head_is_the_pruned_score(results: Path) -> None:
    for model in record_in(results).models:
        pruned, combined = model.row("OPP rho_w_min=0.3"), model.row("Energy + OPP rho_w_min=0.3")
        assert pruned.mean is not None
        assert combined.mean is not None
        assert pruned.mean.auroc == pytest.approx(combined.mean.auroc, abs=1e-9)
        assert pruned.after == combined.after


def test_twice_gives_the_same_bytes_and_times_stand_apart(
    opnp: Opnp, world: Path, results: Path, tmp_path: Path
) -> None:
    outcome = opnp("bench", "--features", world, "--near", "cifar100", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    for name in ("results.json", "results.md", "scores.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (results / name).read_bytes(), name
    record, tables = record_in(results), (results / "results.md").read_text(encoding="utf-8")
    assert tables == results_markdown(record)
    assert " NaN" not in tables
    text = (results / "results.json").read_text(encoding="utf-8")
    assert not any(word in text for word in ("NaN", "Infinity", "seconds", "bytes", str(world), str(results)))
    timings = json.loads((results / "timings.json").read_text(encoding="utf-8"))
    for model in record.models:
        assert list(timings[model.model]) == [row.method for row in model.methods]
        assert all(took["fit_seconds"] >= 0 and took["score_seconds"] > 0 for took in timings[model.model].values())


def test_options_reach_the_protocol(opnp: Opnp, world: Path, tmp_path: Path) -> None:
    arguments = ("--methods", "OPNP,maxlogit-pruned", "--methods", "dice", "--seed", 7, "--validation-samples", 50)
    pruned = ("--rho-w-min", 0, "--rho-o-min", 0.25, "--near", "noise", "--json")
    outcome = opnp("bench", "--features", world / "one", "--out", tmp_path, *arguments, *pruned)
    assert outcome.code == 0, outcome.err
    record = BenchRecord.from_json(outcome.out)
    assert record == record_in(tmp_path)
    (model,) = record.models
    names = ["DICE p=0.9", "MaxLogit + ONP gradient rho_o_min=0.25", "Energy, rest of test", "OPNP()"]
    assert [row.method for row in model.methods] == names
    assert (record.seed, model.validation_samples) == (7, 50)
    assert model.nearness == {"cifar100": "far", "noise": "near"}
    assert opnp("bench", "--features", world / "one", "--out", tmp_path, "--methods", "energy").code == 0
    assert "pytorch-ood" not in record_in(tmp_path).versions


def test_the_table_on_the_terminal(opnp: Opnp, tmp_path: Path) -> None:
    folder = write_world(tmp_path / "net", has_labels=False)
    outcome = opnp("bench", "--features", folder, "--out", tmp_path / "out", "--methods", "msp,energy,she")
    assert outcome.code == 0
    [model] = record_in(tmp_path / "out").models
    places = [outcome.out.index(f"\N{BOX DRAWINGS LIGHT VERTICAL} {row.method} ") for row in model.best_first]
    assert places == sorted(places)
    assert "regret" in outcome.out
    assert "net: 4 classes, 240 ID samples, 2 OOD sets" in outcome.out
    assert "SHE did not run: SHE needs the labels" in outcome.err
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "### Did not run\n\n- SHE: SHE needs the labels" in text
    assert "accuracy and calibration are unknown" in text


def test_without_pytorch_ood_its_methods_name_the_extra_and_others_run(
    opnp: Opnp, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None if name == "pytorch_ood" else find_spec(name))
    arguments = ("bench", "--features", world / "one", "--out", tmp_path / "out")
    outcome = opnp(*arguments, "--methods", "knn")
    assert outcome.code == 2
    assert "pip install 'opnp[bench]'" in outcome.err
    assert not (tmp_path / "out").exists()
    assert opnp(*arguments, "--methods", "reference,product").code == 0


MODEL = ("bench", "--model", "tinynets:net", *OPTIONS)
DATA = ("--id", "test.safetensors", "--train", "train.safetensors", "--ood", "noise=noise.safetensors")
METHODS = ("--methods", "reference,baselines,product")
ODIN = "ODIN temperature=1000 eps=0.0014"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a module of models and some images."""
    monkeypatch.chdir(write_module(write_images(tmp_path)))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return tmp_path


def test_a_model_twice_gives_the_same_bytes_and_no_absolute_path(
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


def test_tuned_rows_go_by_ood_validation_images_that_are_given_and_by_no_others(opnp: Opnp, here: Path) -> None:
    tuned = ("--methods", "energy,opnp-tuned", "--validation-samples", 60, "--out", "out")
    done(opnp, *MODEL, *DATA, *tuned, "--val-ood", "grey.safetensors")
    [model] = record_in(here / "out").models
    rows = {row.method: row for row in model.methods}
    assert {row.status for row in model.methods} == {"ok"}
    assert set(model.nearness) == {"noise"}
    assert model.data["validation_ood"].samples == 50
    assert len({str(rows[name].settings["ratios"]) for name in rows if "tuned" in name}) > 1
    features = here / "out" / "features" / "tinynets-net"
    source = json.loads((features / "source.json").read_text(encoding="utf-8"))
    assert source["sets"]["validation_ood"]["accuracy"] is None
    done(opnp, *MODEL, *DATA, *tuned)
    [model] = record_in(here / "out").models
    assert "validation_ood" not in model.data
    assert {row.status for row in model.methods if "tuned" in row.method} == {"failed"}
    done(opnp, "bench", "--features", features, *tuned)
    assert record_in(here / "out").models[0].methods == tuple(rows.values())


def test_features_of_another_model_are_replaced(opnp: Opnp, here: Path) -> None:
    energy = ("--methods", "energy")
    done(opnp, *MODEL, *DATA, *energy, "--out", "out")
    module = here / "tinynets.py"
    module.write_text(module.read_text(encoding="utf-8").replace("model()", "model(seed=3)"), encoding="utf-8")
    sys.modules.pop("tinynets")
    assert "train, test, ood_noise computed." in opnp(*MODEL, *DATA, *energy, "--out", "out").err
    done(opnp, *MODEL, *DATA, *energy, "--out", "fresh")
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

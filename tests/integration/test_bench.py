"""``opnp bench``: from a folder of features to record, tables, scores and times."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opnp import auroc, fpr_at_tpr
from opnp.bench import results_markdown
from opnp.bench.run import BENCH_FILES
from opnp.values.bench import BenchRecord
from tests.in_process import Opnp
from tests.unit.bench.bench_world import write_world


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


def test_ours_and_theirs_agree(results: Path) -> None:
    for model in record_in(results).models:
        for name in ("MSP", "Energy"):
            ours, theirs = model.row(name).mean, model.row(f"{name} (pytorch-ood)").mean
            assert ours is not None
            assert theirs is not None
            assert ours.auroc == pytest.approx(theirs.auroc, abs=1e-9)
        pruned = model.row("OPP rho_w_min=0.3")
        combined = model.row("Energy + OPP rho_w_min=0.3")
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
    text = (results / "results.json").read_text(encoding="utf-8")
    assert not any(word in text for word in ("NaN", "Infinity", "seconds", "bytes", str(world), str(results)))
    timings = json.loads((results / "timings.json").read_text(encoding="utf-8"))
    record = record_in(results)
    for model in record.models:
        assert list(timings[model.model]) == [row.method for row in model.methods]
        assert all(took["fit_seconds"] >= 0 and took["score_seconds"] > 0 for took in timings[model.model].values())


def test_the_tables_are_made_from_the_record(results: Path) -> None:
    text = (results / "results.md").read_text(encoding="utf-8")
    record = record_in(results)
    assert text == results_markdown(record)
    near, far = text.index("### Near OOD"), text.index("### Far OOD")
    row = record.models[0].row("MaxLogit")
    assert row.near is not None
    assert row.far is not None
    lines = [line for line in text.splitlines() if line.startswith("| MaxLogit |")][1:]
    assert f"{100 * row.far.fpr95:.2f}" in lines[0]
    assert f"{100 * row.near.fpr95:.2f}" in lines[1]
    assert far < near
    assert all(" NaN" not in line for line in text.splitlines())


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--methods", "gram"),
            "`methods` must be groups (reference, baselines, combinations, product) or methods (MSP,",
        ),
        (("--methods", ","), "got none"),
        (("--validation-samples", 240), "`validation_samples` must lie in 1 to 239"),
        (
            ("--rho-w-min", 30),
            "`w_min` must be a fraction in [0, 1), got 30.0. Percentages are written as fractions: 0.3",
        ),
    ],
)
def test_mistakes_are_one_message(
    opnp: Opnp, world: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    outcome = opnp("bench", "--features", world / "one", "--out", tmp_path / "out", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("opnp: ")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_without_pytorch_ood_its_methods_name_the_extra_and_others_run(
    opnp: Opnp, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None)
    arguments = ("bench", "--features", world / "one", "--out", tmp_path / "out")
    outcome = opnp(*arguments, "--methods", "knn")
    assert outcome.code == 2
    assert "pip install 'opnp[bench]'" in outcome.err
    assert not (tmp_path / "out").exists()
    assert opnp(*arguments, "--methods", "reference,product").code == 0

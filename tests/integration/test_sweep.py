"""``opnp sweep``: from a folder of features to record and tables."""

from pathlib import Path

import pytest

from opnp.bench import run_sweep, sweep_markdown
from opnp.bench.sweep import CURVES, SWEEP_FILES
from opnp.values.sweep import SweepBase, SweepRecord
from tests.in_process import Opnp
from tests.unit.bench.bench_world import FEATURES, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_world(folder / "one")
    write_world(folder / "two", rows=300)
    return folder


@pytest.fixture(scope="module")
def results(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "new"
    run_sweep(world, out, near=["cifar100"])
    return out


def record_in(folder: Path) -> SweepRecord:
    return SweepRecord.from_json((folder / "sweep.json").read_text(encoding="utf-8"))


def test_twice_gives_the_same_bytes(opnp: Opnp, world: Path, results: Path, tmp_path: Path) -> None:
    outcome = opnp("sweep", "--features", world, "--near", "cifar100", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in results.iterdir()) == [*SWEEP_FILES]
    for name in SWEEP_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (results / name).read_bytes(), name
        text = (results / name).read_text(encoding="utf-8")
        assert not any(word in text for word in ("NaN", "Infinity", "seconds", str(world), str(results))), name


def test_record_and_tables_hold_every_curve_of_every_model(results: Path) -> None:
    record = record_in(results)
    text = (results / "sweep.md").read_text(encoding="utf-8")
    assert text == sweep_markdown(record)
    assert [model.model for model in record.models] == ["one", "two"]
    assert [curve.name for curve in record.curves] == [curve.about.name for curve in CURVES]
    for model in record.models:
        assert model.data["test"].samples == (240 if model.model == "one" else 300)
        for curve in record.curves:
            assert model.curve(curve.name)
            assert text.count(f"\n### {curve.name}\n") == 2
        assert model.energy.far is not None
        assert f"| {100 * model.energy.far.auroc:.2f} |" in text
    assert {"opnp", "torch", "numpy", "python", "safetensors"} == set(record.versions)
    assert record.base == SweepBase(0.3, 0.0, 0.1, 0.0, "layer", "gradient")
    for model in record.models:
        assert model.nearness == {"cifar100": "near", "noise": "far"}
        for point in model.points:
            assert point.status == "failed" or point.near == (point.detection or {})["cifar100"]


def test_options_reach_the_protocol(opnp: Opnp, world: Path, tmp_path: Path) -> None:
    curves = ("--curves", "samples,scores-unpruned", "--curves", "parts", "--seed", 7, "--near", "noise")
    base = ("--rho-w-min", 0.5, "--rho-w-max", 0.1, "--rho-o-min", 0.2, "--rho-o-max", 0.25)
    readings = ("--scope", "class", "--neuron", "aggregate", "--json")
    outcome = opnp("sweep", "--features", world / "one", "--out", tmp_path, *curves, *base, *readings)
    assert outcome.code == 0, outcome.err
    record = SweepRecord.from_json(outcome.out)
    assert record == record_in(tmp_path)
    assert [curve.name for curve in record.curves] == ["parts", "samples", "scores-unpruned"]
    (model,) = record.models
    assert model.nearness == {"cifar100": "far", "noise": "near"}
    asked = {"w_min": 0.5, "w_max": 0.1, "o_min": 0.2, "o_max": 0.25, "scope": "class", "neuron": "aggregate"}
    assert record.base == SweepBase(**asked)  # type: ignore[arg-type]  # names and values as above
    drawn = model.curve("samples")
    for point in drawn:
        assert {name: getattr(point.settings, name) for name in asked} == asked
    assert [point.settings.seed for point in drawn] == [*range(7, 12), *range(7, 12), None]
    assert [point.settings.training_samples for point in drawn] == [*[100] * 5, *[200] * 5, 240]


def test_the_table_on_the_terminal(opnp: Opnp, tmp_path: Path) -> None:
    folder = write_world(tmp_path / "net", has_labels=False)
    arguments = ("--curves", "w_min-class,samples", "--rho-w-min", 0.99, "--rho-o-min", 0)
    outcome = opnp("sweep", "--features", folder, "--out", tmp_path / "out", *arguments)
    assert outcome.code == 0
    assert "net: 4 classes, 16 features" in outcome.out
    assert "Energy (original head)" in outcome.out
    assert "net: 1 points of w_min-class did not run; sweep.md says why." in outcome.err
    assert "start with sweep.md" in outcome.out
    best = max(
        (point.far for point in record_in(tmp_path / "out").models[0].curve("w_min-class") if point.far is not None),
        key=lambda figures: figures.auroc,
    )
    assert f"{100 * best.fpr95:.2f} / {100 * best.auroc:.2f}" in outcome.out
    text = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert f"- w_min 0.99 did not run: `w_min` = 0.99 and `w_max` = 0 remove {FEATURES} + 0 of {FEATURES}" in text

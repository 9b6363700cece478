"""Records become JSON and come back; equal records give equal text."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from opnp.bench import (
    BENCH_RECORD_VERSION,
    BenchRecord,
    ClassifierFigures,
    DataSource,
    DetectionFigures,
    DetectionResult,
    MethodResult,
    MethodRow,
    ModelResult,
    Record,
    results_markdown,
)
from opnp.bench.bench_record import Group
from opnp.errors import DataFileError

FIGURES = DetectionFigures(0.1, 0.2, 0.30000000000000004, 0.4, 0.5)
CLASSIFIER = ClassifierFigures(0.9, 0.05, (0, 10), (0.0, 0.8), (0.0, 0.9))
GOOD = MethodRow(
    method="OPP rho_w_min=0.3",
    group="reference",
    source="opnp",
    citation="a paper",
    settings={"ratios": {"w_min": 0.3}, "shaping": None, "values": [1, 2]},
    split="rest",
    status="ok",
    notes=("a warning",),
    detection={"mnist": FIGURES},
    mean=FIGURES,
    far=FIGURES,
    before=CLASSIFIER,
    after=CLASSIFIER,
)
BAD = MethodRow("SHE", "baseline", "pytorch-ood", "", {}, "test", "failed", reason="no labels")
MODEL = ModelResult(
    model="net",
    classes=10,
    features=64,
    data={"train": DataSource(100, "00ff")},
    nearness={"mnist": "far"},
    id_samples={"test": 50, "rest": 40},
    validation_samples=10,
    methods=(GOOD, BAD),
)
RECORD = BenchRecord(seed=3, calibration_bins=2, versions={"opnp": "0.1.0"}, models=(MODEL,))
DEMO = Record(
    title="digits",
    seed=0,
    keep=0.95,
    counts={"test": 5},
    versions={"opnp": "0.1.0"},
    methods=(
        MethodResult("Energy", {"ratios": "auto"}, {"far": DetectionResult(0.1, 0.2, 0.3)}, 1.0, 0.9, 0.05, -3.0),
    ),
)


def test_a_record_comes_back() -> None:
    back = BenchRecord.from_json(RECORD.to_json())
    assert back == RECORD
    assert back.to_json() == RECORD.to_json()
    assert back.models[0].row("SHE").reason == "no labels"


def test_the_demo_record_comes_back() -> None:
    assert Record.from_json(DEMO.to_json()) == DEMO


def test_rows_are_found_by_name() -> None:
    assert MODEL.row("OPP rho_w_min=0.3") is GOOD
    with pytest.raises(KeyError, match="absent"):
        MODEL.row("absent")


def test_regret_is_what_the_best_published_single_score_has_more() -> None:
    names: dict[str, Group] = {
        "Energy": "reference",
        "fDBD": "baseline",
        "fDBD + OPP": "combination",
        "OPNP()": "product",
    }
    aurocs = dict(zip(names, (0.7, 0.9, 0.99, 0.875), strict=True))
    rows = tuple(
        replace(GOOD, method=name, group=group, mean=replace(FIGURES, auroc=aurocs[name]))
        for name, group in names.items()
    )
    data = {name: DataSource(100, "00ff") for name in ("train", "test", "ood_mnist")}
    model = replace(MODEL, data=data, methods=(*rows, BAD))
    assert model.best_single is rows[1]
    regrets = {row.method: model.regret(row) for row in model.methods}
    assert regrets == {
        "Energy": pytest.approx(0.2),
        "fDBD": 0.0,
        "fDBD + OPP": 0.0,
        "OPNP()": pytest.approx(0.025),
        "SHE": None,
    }
    assert [row.method for row in model.best_first] == ["fDBD + OPP", "fDBD", "OPNP()", "Energy"]
    alone = replace(MODEL, methods=(rows[3],))
    assert (alone.best_single, alone.regret(rows[3])) == (None, None)
    lines = results_markdown(replace(RECORD, models=(model,))).splitlines()
    assert "The best published single score here is fDBD." in lines
    assert lines[lines.index("| method | AUROC | regret |") + 4] == "| OPNP() | 87.50 | 2.50 |"


def test_records_are_frozen_and_versioned() -> None:
    with pytest.raises(FrozenInstanceError, match="seed"):
        RECORD.seed = 4  # type: ignore[misc]  # that is the point
    values = json.loads(RECORD.to_json())
    assert values["record_version"] == BENCH_RECORD_VERSION
    with pytest.raises(DataFileError, match="has version 99"):
        BenchRecord.from_json(json.dumps(values | {"record_version": 99}))
    with pytest.raises(DataFileError, match="has version 99"):
        Record.from_json(json.dumps(json.loads(DEMO.to_json()) | {"record_version": 99}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"record_version": 1}', '{"record_version": 1, "models": [3]}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(DataFileError, match="no record of a benchmark"):
        BenchRecord.from_json(text)
    with pytest.raises(DataFileError, match="no record of a demo"):
        Record.from_json(text.replace("models", "methods"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_figure_that_is_no_number(value: float) -> None:
    row = replace(GOOD, mean=replace(FIGURES, auroc=value))
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(RECORD, models=(replace(MODEL, methods=(row,)),)).to_json()


def test_order_of_keys_does_not_matter() -> None:
    other = replace(RECORD, versions=dict(reversed([("a", "1"), ("b", "2")])))
    assert other.to_json() == replace(RECORD, versions={"a": "1", "b": "2"}).to_json()

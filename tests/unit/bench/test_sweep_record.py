"""The record of a sweep becomes JSON and comes back; equal records give equal text."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from opnp.bench import (
    SWEEP_RECORD_VERSION,
    DataSource,
    DetectionFigures,
    HeadFigures,
    SweepBase,
    SweepCurve,
    SweepPoint,
    SweepRecord,
    SweepSettings,
    SweptModel,
)
from opnp.errors import DataFileError

FIGURES = DetectionFigures(0.1, 0.2, 0.30000000000000004, 0.4, 0.5)
SETTINGS = SweepSettings(0.3, 0.0, 0.0, 0.0, "class", "aggregate", 1.0, "energy", 500, 2)
GOOD = SweepPoint(
    curve="w_min",
    varied={"w_min": 0.3},
    settings=SETTINGS,
    status="ok",
    notes=("a warning",),
    pruned_weights=12,
    pruned_neurons=0,
    removed_share=0.3,
    mask_digest="00ff",
    detection={"mnist": FIGURES},
    mean=FIGURES,
    far=FIGURES,
    head=HeadFigures(0.9, 0.05),
)
BAD = SweepPoint("parts", {"part": "OPNP", "draw": 3}, replace(SETTINGS, seed=None), "failed", reason="nothing is left")
MODEL = SweptModel(
    model="net",
    classes=10,
    features=64,
    data={"train": DataSource(100, "00ff")},
    nearness={"mnist": "far"},
    energy=replace(GOOD, curve="", varied={}),
    points=(GOOD, BAD),
)
RECORD = SweepRecord(
    seed=3,
    base=SweepBase(0.3, 0.0, 0.1, 0.0, "class", "gradient"),
    calibration_bins=15,
    versions={"opnp": "0.1.0"},
    curves=(SweepCurve("w_min", "ratios", "a title", ("w_min",)),),
    models=(MODEL,),
)


def test_a_record_comes_back() -> None:
    back = SweepRecord.from_json(RECORD.to_json())
    assert back == RECORD
    assert back.to_json() == RECORD.to_json()
    assert hash(back.models[0].points[0].settings) == hash(SETTINGS)


def test_points_are_found_by_curve() -> None:
    assert MODEL.curve("w_min") == (GOOD,)
    with pytest.raises(KeyError, match="absent"):
        MODEL.curve("absent")


def test_labels_are_what_is_varied() -> None:
    assert GOOD.labels(["w_min"]) == ("0.3",)
    assert BAD.labels(["part", "draw"]) == ("OPNP", "3")
    assert SweepRecord.from_json(RECORD.to_json()).models[0].points[1].labels(["part", "draw"]) == ("OPNP", "3")


def test_records_are_frozen_and_versioned() -> None:
    with pytest.raises(FrozenInstanceError, match="seed"):
        RECORD.seed = 4  # type: ignore[misc]  # that is the point
    values = json.loads(RECORD.to_json())
    assert values["record_version"] == SWEEP_RECORD_VERSION
    with pytest.raises(DataFileError, match="has version 99, and this opnp reads version 1: run the sweep again"):
        SweepRecord.from_json(json.dumps(values | {"record_version": 99}))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", '{"record_version": 1}', '{"record_version": 1, "models": [], "curves": 3}'],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(DataFileError, match="no record of a sweep"):
        SweepRecord.from_json(text)


@pytest.mark.parametrize("part", ["settings", "detection", "mean", "head", "notes"])
def test_a_damaged_point_is_refused(part: str) -> None:
    values = json.loads(RECORD.to_json())
    values["models"][0]["points"][0][part] = 3
    with pytest.raises(DataFileError, match="no record of a sweep"):
        SweepRecord.from_json(json.dumps(values))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_figure_that_is_no_number(value: float) -> None:
    point = replace(GOOD, mean=replace(FIGURES, auroc=value))
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(RECORD, models=(replace(MODEL, points=(point,)),)).to_json()


def test_order_of_keys_does_not_matter() -> None:
    other = replace(RECORD, versions=dict(reversed([("a", "1"), ("b", "2")])))
    assert other.to_json() == replace(RECORD, versions={"a": "1", "b": "2"}).to_json()

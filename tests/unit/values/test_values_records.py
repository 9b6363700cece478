"""Records of benchmarks, sweeps, pictures and fits: files of older runs are read, derived figures are right."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from opnp.errors import DataFileError
from opnp.values.bench import BenchRecord, DemoRecord, DemoRow, Group, MethodRow, ModelResult
from opnp.values.figures import DetectionFigures, mean_figures, means_by_side
from opnp.values.fit import FitRecord
from opnp.values.pictures import PictureRecord
from opnp.values.reading import Record
from opnp.values.sweep import SweepPoint, SweepRecord, SweepSettings

RECORDS = Path(__file__).parents[3] / "docs" / "records"
FIGURES = DetectionFigures(0.1, 0.2, 0.30000000000000004, 0.4, 0.5)
SETTINGS = SweepSettings(0.3, 0.0, 0.0, 0.0, "class", "aggregate", 1.0, "energy", 500, 2)
BAD = MethodRow("SHE", "baseline", "pytorch-ood", "", {}, "test", status="failed", reason="no labels")
DEMO = DemoRecord(
    title="digits",
    seed=0,
    keep=0.95,
    counts={"test": 5},
    versions={"opnp": "0.1.0"},
    methods=(DemoRow("Energy", {"ratios": "auto"}, {"far": DetectionFigures(0.1, 0.2, 0.3)}, 1.0, 0.9, 0.05, -3.0),),
)
READERS: dict[str, Callable[[str], Record]] = {
    "bench": BenchRecord.from_json,
    "bench_other": BenchRecord.from_json,
    "sweep": SweepRecord.from_json,
}


@pytest.mark.parametrize("name", READERS)
def test_records_of_real_runs_are_read_and_written_to_the_same_bytes(name: str) -> None:
    text = (RECORDS / f"{name}.json").read_text(encoding="utf-8")
    assert READERS[name](text).to_json() + "\n" == text


def test_figures_that_were_not_taken_do_not_stand_in_the_file() -> None:
    assert DemoRecord.from_json(DEMO.to_json()) == DEMO
    assert json.loads(DEMO.to_json())["methods"][0]["detection"] == {
        "far": {"fpr95": 0.1, "fpr95_ood_positive": 0.2, "auroc": 0.3}
    }


@pytest.mark.parametrize(
    ("kind", "subject", "version"),
    [
        (BenchRecord, "a benchmark", 1),
        (DemoRecord, "a demo", 1),
        (SweepRecord, "a sweep", 1),
        (PictureRecord, "pictures", 1),
        (FitRecord, "a fit", 2),
    ],
)
def test_other_files_and_other_versions_are_refused(kind: type[Record], subject: str, version: int) -> None:
    for text in (
        "",
        "[]",
        "{}",
        "3",
        f'{{"record_version": {version}}}',
        f'{{"record_version": {version}, "models": 3}}',
    ):
        with pytest.raises(DataFileError, match=f"no record of {subject}"):
            kind.from_json(text)
    with pytest.raises(DataFileError, match=f"has version 99, and this opnp reads version {version}"):
        kind.from_json('{"record_version": 99}')


@pytest.mark.parametrize("part", ["settings", "detection", "mean", "head", "notes"])
def test_a_damaged_point_of_a_sweep_is_refused(part: str) -> None:
    values = json.loads((RECORDS / "sweep.json").read_text(encoding="utf-8"))
    values["models"][0]["points"][0][part] = 3
    with pytest.raises(DataFileError, match=rf"points\[0\]\.{part}"):
        SweepRecord.from_json(json.dumps(values))


def test_means_are_taken_figure_by_figure_and_side_by_side() -> None:
    figures = {name: DetectionFigures(0.1 * place, 0, 0.5, 0.2, 0.3) for place, name in enumerate("abc")}
    found = means_by_side(figures, {"a": "near", "b": "far", "c": "far"})
    assert found["near"] == figures["a"]
    assert found["mean"] == mean_figures(figures.values())
    assert found["far"] is not None
    assert found["far"].fpr95 == pytest.approx(0.15)
    assert mean_figures([]) is None
    bare = mean_figures([DetectionFigures(0.1, 0.2, 0.3), FIGURES])
    assert bare is not None
    assert bare.aupr_id_positive is None
    assert bare.auroc == pytest.approx(0.3)


def row(name: str, group: Group, auroc: float) -> MethodRow:
    return replace(BAD, method=name, group=group, status="ok", mean=replace(FIGURES, auroc=auroc))


def model(*rows: MethodRow) -> ModelResult:
    sizes = {
        "model": "net",
        "classes": 10,
        "features": 64,
        "data": {},
        "nearness": {"b": "far", "a": "far", "c": "near"},
    }
    return ModelResult(**sizes, id_samples={"test": 50, "rest": 40}, validation_samples=10, methods=rows)  # type: ignore[arg-type]  # names and values of its attributes


def test_regret_is_what_the_best_published_single_score_has_more() -> None:
    energy, fdbd = row("Energy", "reference", 0.7), row("fDBD", "baseline", 0.9)
    pruned, ours = row("fDBD + OPP", "combination", 0.99), row("OPNP()", "product", 0.875)
    judged = model(energy, fdbd, pruned, ours, BAD)
    assert judged.best_single is fdbd
    regrets = [judged.regret(each) for each in judged.methods]
    assert regrets == [pytest.approx(0.2), 0.0, 0.0, pytest.approx(0.025), None]
    assert judged.best_first == (pruned, fdbd, ours, energy)
    assert (model(ours).best_single, model(ours).regret(ours)) == (None, None)


def test_rows_sets_and_curves_are_found_by_name() -> None:
    judged = model(BAD)
    assert judged.row("SHE") is BAD
    assert (judged.sets("far"), judged.sets("near")) == (["a", "b"], ["c"])
    swept = SweepRecord.from_json((RECORDS / "sweep.json").read_text(encoding="utf-8")).models[0]
    assert {point.curve for point in swept.curve("w_min")} == {"w_min"}
    for find in (judged.row, swept.curve):
        with pytest.raises(KeyError, match="absent"):
            find("absent")


def test_labels_are_what_is_varied() -> None:
    point = SweepPoint(
        "parts", {"part": "OPNP", "draw": 3, "w_min": 0.30}, SETTINGS, status="failed", reason="nothing is left"
    )
    assert point.labels(["part", "draw", "w_min"]) == ("OPNP", "3", "0.3")

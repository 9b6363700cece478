"""Records and scores of a folder, as they are read."""

import re
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import asdict, replace

from opnp.errors import DataFileError, MissingExtraError, MissingFileError
from opnp.report import Results, read_results
from opnp.report.content import page_content
from opnp.report.results import models_of_bench, models_of_demo
from opnp.values.bench import BenchRecord
from opnp.values.pictures import PictureRecord
from tests.unit.report.report_world import (
    MODEL,
    bench_folder,
    bench_record,
    demo_folder,
    demo_record,
    first_version_record,
    fusion_record,
    scores_by_set,
    write_scores,
)


@pytest.mark.parametrize(
    "record", [bench_record(), first_version_record(), fusion_record()], ids=["real", "version 0.1", "fusion"]
)
def test_a_bench_is_reported_with_every_row_and_figure(record: BenchRecord) -> None:
    for source, model in zip(record.models, models_of_bench(record), strict=True):
        assert (model.model, model.classes, model.features) == (source.model, source.classes, source.features)
        for row, given in zip(model.methods, source.methods, strict=True):
            assert {name: getattr(row, name) for name in asdict(given)} == asdict(given)
            assert row.accuracy == (None if given.before is None else given.before.accuracy)
        found = [None if row is None else row.method for row in (model.chosen, model.baseline)]
        assert found == ["OPNP()", "Energy, rest of test"]
        assert len({row.split for row in (model.chosen, model.baseline) if row is not None}) == 1


def test_the_demo_is_reported_with_its_rows() -> None:
    [model] = models_of_demo(demo_record(scores_by_set()))
    assert (model.chosen, model.baseline) == (model.row("OPNP"), model.row("Energy"))
    with pytest.raises(KeyError, match="nothing"):
        model.row("nothing")


def test_without_a_chosen_row_the_energy_is_still_the_baseline() -> None:
    [first, *_] = models_of_bench(bench_record())
    model = replace(first, methods=tuple(row for row in first.methods if row.group == "reference"))
    assert (model.chosen, model.baseline) == (None, model.row("Energy"))


@pytest.mark.parametrize(
    ("record", "chosen"), [(first_version_record(), "OPNP(shaping=None)"), (fusion_record(), None)]
)
def test_a_row_that_failed_is_not_chosen_nor_a_member_in_its_place(record: BenchRecord, chosen: str | None) -> None:
    [first] = models_of_bench(record)
    failed = {"status": "failed", "detection": None, "mean": None, "near": None, "far": None}
    rows = (replace(row, **failed) if row.method == "OPNP()" else row for row in first.methods)
    found = replace(first, methods=tuple(rows)).chosen
    assert (None if found is None else found.method) == chosen


def test_scores_of_a_bench_come_by_model_and_method(tmp_path: Path) -> None:
    results = read_results(bench_folder(tmp_path))
    assert results.demo is None
    assert results.sweep is not None
    scores = results.scores(MODEL, "OPNP()")
    assert scores is not None
    assert list(scores) == ["test", "ood_cifar10", "ood_dtd", "ood_mnist", "ood_tiny_imagenet_crop"]
    np.testing.assert_array_equal(scores["test"], scores_by_set(1)["test"])
    assert results.scores(MODEL, "KNN") is None
    assert results.scores("densenet_cifar10", "OPNP()") is None
    compared = results.scores_to_compare(next(model for model in results.models if model.model == MODEL))
    assert list(compared) == ["Energy, rest of test", "OPNP()"]


def test_scores_of_the_demo_belong_to_its_chosen_row(tmp_path: Path) -> None:
    results = read_results(demo_folder(tmp_path))
    scores = results.scores("demo", "OPNP")
    assert scores is not None
    assert list(scores) == ["test", "ood_far", "ood_near"]
    for name, values in scores_by_set().items():
        np.testing.assert_array_equal(scores[name], values)
    assert results.scores("demo", "Energy") is None
    (tmp_path / "scores.csv").unlink()
    assert read_results(tmp_path).scores("demo", "OPNP") is None


def test_columns_of_model_and_method_are_heeded_in_csv_as_well(tmp_path: Path) -> None:
    demo_folder(tmp_path)
    text = "model,method,set,score\ndemo,Energy,test,1.5\ndemo,OPNP,test,2.5\nother,OPNP,test,3.5\n"
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8")
    results = read_results(tmp_path)
    found = [results.scores("demo", method) for method in ("Energy", "OPNP")]
    assert [None if each is None else each["test"].tolist() for each in found] == [[1.5], [2.5]]


def test_pictures_of_the_only_model_need_no_equal_name(tmp_path: Path) -> None:
    results = read_results(demo_folder(tmp_path))
    pictures = results.pictures_of("demo")
    assert pictures is not None
    assert pictures.model == "digits"
    several = PictureRecord(models=tuple(replace(pictures, model=name) for name in ("a", "b")))
    assert Results(results.folder, demo=results.demo, pictures=several).pictures_of("demo") is None


def test_what_is_no_folder_of_results_is_named_and_told_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none: no such folder of results\."):
        read_results(tmp_path / "none")
    with pytest.raises(DataFileError, match=r"must have one of results\.json, sweep\.json") as caught:
        read_results(tmp_path)
    assert "`opnp bench`, `opnp sweep` and `opnp demo` write them" in str(caught.value)


@pytest.mark.parametrize("name", ["results.json", "sweep.json", "pictures.json", "fit.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", ""),
        ('{"record_version": 9, "models": []}', ""),
        ("[]", ""),
        ('{"record_version": 1, "models": [], "x": NaN}', "it holds NaN, and every number must be finite"),
        ('{"record_version": 1, "models": [], "x": -Infinity}', "it holds -Infinity"),
        ('{"record_version": 1, "models": [], "x": 1e999}', "it holds 1e999"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_an_unreadable_record_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=re.escape(name) + f".*{message}"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set,index\ntest,0\n", r"scores\.csv cannot be read as a file of scores \(KeyError: 'score'\)"),
        ("set,score\ntest,many\n", r"could not convert string to float"),
        ("set,score\ntest,1.25", r"its last line is cut short"),
        ("set,score\ntest,nan\n", r"holds NaN or -inf as a score"),
        ("set,score\ntest,-inf\n", r"holds NaN or -inf as a score"),
    ],
)
def test_unreadable_scores_are_named(tmp_path: Path, text: str, message: str) -> None:
    (demo_folder(tmp_path) / "scores.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError, match=message):
        read_results(tmp_path).scores("demo", "OPNP")


def test_parquet_that_is_none_or_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = read_results(bench_folder(tmp_path))
    (tmp_path / "scores.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataFileError, match=r"scores\.parquet cannot be read as a file of scores"):
        results.scores(MODEL, "OPNP()")
    monkeypatch.setattr("opnp.report.results.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[report\]'"):
        results.scores(MODEL, "OPNP()")


def parts_folder(folder: Path) -> Path:
    """Return a folder that holds a folder for each of two models, with records, pictures and scores of their own."""
    for name in ("one", "two"):
        [first, *_] = bench_record().models
        record = replace(bench_record(), models=(replace(first, model=name),), remark="Stand-ins.")
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(record.to_json(), encoding="utf-8")
        scores = {(name, method): scores_by_set(seed=len(name)) for method in ("OPNP()", "Energy, rest of test")}
        write_scores(folder / name / "scores.parquet", scores)
    return folder


def test_a_folder_of_records_is_read_as_one(tmp_path: Path) -> None:
    found = read_results(parts_folder(tmp_path / "parts"))
    assert found.model_names == ["one", "two"]
    assert found.bench is not None
    assert found.bench.remark == "Stand-ins."
    for part in found.parts:
        [model] = part.models
        assert found.models[found.model_names.index(model.model)] == model
        own, whole = (each.scores(model.model, "OPNP()") for each in (part, found))
        assert own is not None
        assert whole is not None
        assert own.keys() == whole.keys()
        assert all(np.array_equal(own[name], whole[name]) for name in own)
    content = page_content(found)
    assert content.remark == "Stand-ins."
    assert content.regrets is not None
    assert [column.title for column in content.regrets.columns] == ["Method", "mean", "worst", "one", "two"]
    means = [float(row.cells[1].text) for row in content.regrets.rows]
    assert means == sorted(means)
    (tmp_path / "parts" / "two" / "results.json").write_text(
        (tmp_path / "parts" / "one" / "results.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.raises(DataFileError, match=r"parts: Records of one folder .* different models, got 'one' twice"):
        read_results(tmp_path / "parts")

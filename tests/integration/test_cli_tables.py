"""Linear classifiers of scikit-learn on the command line: tables of numbers, two classes, and few samples."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from opnp import OPNP, Ratios
from opnp.cli.cluster import add_column
from opnp.data import open_features, read_head, write_head
from opnp.errors import OptionError
from tests.in_process import Opnp, done, refused

TABLES = {
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
}


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and classes of a table inside scikit-learn, or of one of two classes that it draws."""
    if name == "binary":
        columns, classes = datasets.make_classification(160, 6, n_informative=4, random_state=0)
        return columns, classes
    found = TABLES[name]()
    return found.data, found.target


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", [*TABLES, "binary"])
def test_a_table_and_the_head_of_a_classifier_are_all_that_is_needed(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    columns, classes = table(name)
    training, rest, labels = train_test_split(columns, classes, random_state=0, stratify=classes)[:3]
    scaler = StandardScaler().fit(training)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(training), labels)
    write_head("head.safetensors", model.coef_, bias=model.intercept_)
    held_out, test = np.array_split(scaler.transform(rest), 2)
    for part, rows, targets in (
        ("train", scaler.transform(training), labels),
        ("validation", held_out, None),
        ("new", np.concatenate([test, 12 + test]), None),
    ):
        numbers = {f"column {place}": column for place, column in enumerate(rows.T)}
        if part == "new":  # another order, and more
            numbers = {"sample": np.arange(len(rows)), **dict(reversed(numbers.items()))}
        written = pa.table({**numbers, **({} if targets is None else {"label": targets})})
        if ending == "csv":
            arrow_csv.write_csv(written, f"{part}.csv")
        else:
            parquet.write_table(written, f"{part}.parquet")
    fit = f"fit --features train.{ending} --head head.safetensors --validation validation.{ending} --keep 0.9"
    done(opnp, *fit.split(), "--out", "d.safetensors")
    told = done(opnp, *f"score d.safetensors --features new.{ending} --out scores.csv".split()).err
    assert "1 column left out, which the detector was not fitted on: sample" in told
    with Path("scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known, far = rows[: len(test)], rows[len(test) :]
    assert [int(row["predicted_class"]) for row in known] == model.predict(test).tolist()
    assert sum(row["is_ood"] == "True" for row in known) <= 0.25 * len(known)
    assert sum(row["is_ood"] == "True" for row in far) >= 0.9 * len(far)
    by_hand = OPNP().fit_features(
        scaler.transform(training), weight=model.coef_, bias=model.intercept_, validation=held_out, keep=0.9
    )
    assert by_hand.score_features(test).tolist() == pytest.approx([float(row["score"]) for row in known], rel=1e-9)


def test_columns_of_a_fit_are_found_by_name_or_missed(opnp: Opnp, tmp_path: Path) -> None:
    columns, classes = table("binary")
    model = LogisticRegression().fit(columns, classes)
    write_head(tmp_path / "head.safetensors", model.coef_, bias=model.intercept_)
    numbers = {f"column {place}": column for place, column in enumerate(columns.T)}
    other = dict(reversed(numbers.items()))
    kept = dict(list(numbers.items())[1:])
    for name, written in {"train": numbers, "other": other, "few": kept}.items():
        arrow_csv.write_csv(pa.table(written), tmp_path / f"{name}.csv")
    head = read_head(tmp_path / "head.safetensors")
    training, turned = open_features(tmp_path / "train.csv"), open_features(tmp_path / "other.csv")
    detector = OPNP().fit_features(training, weight=head.weight, bias=head.bias)
    assert detector.feature_names == tuple(numbers)
    with pytest.raises(OptionError, match=r"the columns of the fit in another order: .*feature_names="):
        detector.calibrate_features(turned)
    with pytest.raises(OptionError, match="`validation` has the columns of the fit in another order"):
        OPNP().fit_features(training, weight=head.weight, bias=head.bias, validation=turned)
    put_right = open_features(tmp_path / "other.csv", feature_names=detector.feature_names)
    assert torch.equal(put_right.read(0, 9)[0], training.read(0, 9)[0])
    assert detector.with_ratios(Ratios(w_min=0.5)).feature_names == tuple(numbers)
    detector.calibrate_features(put_right).save(tmp_path / "d.safetensors")
    assert OPNP.load(tmp_path / "d.safetensors").feature_names == tuple(numbers)
    message = refused(opnp, "score", tmp_path / "d.safetensors", "--features", tmp_path / "few.csv")
    assert "few.csv lacks the column `column 0` of the 6 that the detector was fitted on" in message
    found = done(opnp, "inspect", tmp_path / "d.safetensors").out
    assert "column 4, ..." in found


def test_a_pipeline_is_taken_apart_at_its_classifier() -> None:
    """The features are what the classifier takes in: all steps before it, on the same columns."""
    columns, classes = table("wine")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(columns, classes)
    head = pipeline[-1]
    detector = OPNP().fit_features(pipeline[:-1].transform(columns), weight=head.coef_, bias=head.intercept_)
    assert detector.classify_features(pipeline[:-1].transform(columns)).tolist() == pipeline.predict(columns).tolist()


def test_a_column_is_added_file_by_file_each_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in {"a": [3, 1], "b": [0, 2]}.items():
        parquet.write_table(pa.table({"index": rows, "score": rows}), tmp_path / f"{name}.parquet")
    add_column(tmp_path, "is_discovery", [False, True, True, False])
    found = {name: parquet.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in "ab"}
    assert found["a"] == {"index": [3, 1], "score": [3, 1], "is_discovery": [False, True]}
    assert found["b"] == {"index": [0, 2], "score": [0, 2], "is_discovery": [False, True]}

    def cut(table: pa.Table, place: str, **_: object) -> None:
        Path(place).write_bytes(b"PAR1")
        raise OSError("no room")

    monkeypatch.setattr(parquet, "write_table", cut)
    with pytest.raises(OSError, match="no room"):
        add_column(tmp_path, "other", [1, 2, 3, 4])
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b.parquet"}
    assert parquet.read_table(tmp_path).num_columns == 3


def test_options_that_a_fit_on_a_cluster_has_no_use_for_are_refused(opnp: Opnp) -> None:
    fit = "fit --features a.parquet --head h.safetensors --out d.safetensors --ray local"
    message = refused(opnp, *fit.split(), "--device", "cuda:1", "--batch-size", "16")
    assert "--batch-size, --device cannot go with `--ray` and `--features`" in message

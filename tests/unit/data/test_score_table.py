"""Score files: every bit of every number, as CSV and as Parquet."""

import csv
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from opnp.data import tables, write_score_table
from opnp.errors import DataFileError, MissingExtraError, MissingFileError

_HARD = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1074, 123456789.123456789, float("inf"), -1e-7]
SCORES = [*_HARD, *torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()]
COLUMNS: dict[str, list[Any]] = {
    "index": list(range(len(SCORES))),
    "predicted_class": [number % 7 for number in range(len(SCORES))],
    "score": SCORES,
    "is_ood": [number % 2 == 0 for number in range(len(SCORES))],
}


def bits(value: float) -> bytes:
    return struct.pack("d", value)


def test_csv_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_score_table(path, COLUMNS)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [bits(float(row["score"])) for row in rows] == [bits(score) for score in SCORES]
    assert [int(row["index"]) for row in rows] == COLUMNS["index"]
    assert [row["is_ood"] for row in rows] == [str(value) for value in COLUMNS["is_ood"]]


def test_float32_scores_come_back_as_float32(tmp_path: Path) -> None:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(1))
    write_score_table(tmp_path / "scores.csv", {"score": scores.tolist()})
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        read = torch.tensor([float(row["score"]) for row in csv.DictReader(file)])
    assert torch.equal(read, scores)


def test_parquet_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "scores.PARQUET"
    write_score_table(str(path), COLUMNS)
    table = parquet.read_table(path)
    assert table.column_names == list(COLUMNS)
    assert [bits(score) for score in table["score"].to_pylist()] == [bits(score) for score in SCORES]
    assert table["is_ood"].to_pylist() == COLUMNS["is_ood"]
    assert table["index"].to_pylist() == COLUMNS["index"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    for name in ("one", "other"):
        write_score_table(tmp_path / f"{name}.{ending}", COLUMNS)
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"other.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_empty_table_keeps_its_columns(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    write_score_table(path, {"index": [], "score": []})
    if ending == "csv":
        assert path.read_text(encoding="utf-8") == "index,score\n"
    else:
        assert parquet.read_table(path).column_names == ["index", "score"]


def test_text_is_quoted_where_it_must_be(tmp_path: Path) -> None:
    names = ['a "b", c', "two\nlines", "größe"]
    write_score_table(tmp_path / "scores.csv", {"file": names})
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[bench\]'.*\.csv"):
        write_score_table(tmp_path / "scores.parquet", COLUMNS)
    assert not list(tmp_path.iterdir())
    write_score_table(tmp_path / "scores.csv", COLUMNS)


@pytest.mark.parametrize(
    ("name", "ending"), [("scores.txt", r"'\.txt'"), ("scores", "'no ending'"), ("a.csv.gz", "gz")]
)
def test_another_ending(tmp_path: Path, name: str, ending: str) -> None:
    with pytest.raises(DataFileError, match=rf"must end in \.csv or \.parquet, got .*{ending}"):
        write_score_table(tmp_path / name, COLUMNS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_missing_folder(tmp_path: Path, ending: str) -> None:
    with pytest.raises(MissingFileError, match="missing is no folder"):
        write_score_table(tmp_path / "missing" / f"scores.{ending}", COLUMNS)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_unequal_length_leave_no_file(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=r"length|longer|shorter"):
        write_score_table(tmp_path / f"scores.{ending}", {"index": [1, 2], "score": [0.5]})
    assert not list(tmp_path.iterdir())

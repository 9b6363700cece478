"""Score files read back: every bit as it was written, and a clear word where they are not what they should be."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from opnp.data import tables, write_score_table
from opnp.data.tables import read_score_table
from opnp.errors import DataFileError, EmptyDataError, MissingExtraError, MissingFileError, OpnpError

SCORES = [*torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist(), 1 / 3, -0.0, 5e-324, float("inf")]
ROWS = len(SCORES)
COLUMNS: dict[str, Sequence[object]] = {
    "index": list(range(ROWS)),
    "name": [f'a, "b" {row}.png' for row in range(ROWS)],
    "predicted_class": [row % 7 for row in range(ROWS)],
    "score": SCORES,
    "p_value": [(1 + row) / (ROWS + 1) for row in range(ROWS)],
    "is_ood": [row % 3 == 0 for row in range(ROWS)],
}


@pytest.mark.parametrize("ending", ["csv", "parquet", "PARQUET"])
def test_what_was_written_comes_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    write_score_table(path, COLUMNS)
    table = read_score_table(path)
    assert table.p_values is not None
    assert table.is_ood is not None
    assert torch.equal(table.scores.view(torch.int64), torch.tensor(SCORES, dtype=torch.float64).view(torch.int64))
    assert table.p_values.tolist() == COLUMNS["p_value"]
    assert table.is_ood.tolist() == COLUMNS["is_ood"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_without_a_calibration_there_are_scores_alone(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    write_score_table(path, COLUMNS | {"p_value": [None] * ROWS, "is_ood": [None] * ROWS})
    table = read_score_table(path)
    assert (table.p_values, table.is_ood) == (None, None)
    write_score_table(path, {"score": SCORES})
    assert read_score_table(path).scores.tolist() == SCORES


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"score": ["x"] * ROWS}, DataFileError, "`score` of row 0 is 'x'"),
        ({"score": [float("nan")] * ROWS}, DataFileError, r"`score` is NaN in rows 0, 1, 2, 3, 4, \.\.\."),
        ({"score": [None] * ROWS}, DataFileError, "holds no scores"),
        ({"score": [None, *SCORES[1:]]}, DataFileError, r"`score` has no value in 1 of 54 rows \(rows 0\)"),
        ({"p_value": [None, *[0.5] * (ROWS - 1)]}, DataFileError, "`p_value` has no value in 1 of 54 rows"),
        ({"p_value": [1.5] * ROWS}, DataFileError, "p-values lie above 0 and at most at 1, got 1.5 to 1.5"),
        ({"p_value": [0.0] * ROWS}, DataFileError, "got 0 to 0"),
        ({"is_ood": [b"yes"] * ROWS}, DataFileError, "`is_ood` of row 0 is "),
        ({"is_ood": ["maybe"] * ROWS}, DataFileError, "`is_ood` of row 0 is 'maybe'"),
        ({name: [] for name in COLUMNS}, EmptyDataError, "holds no rows"),
    ],
)
def test_values_that_are_none_are_named(
    tmp_path: Path, ending: str, changes: dict[str, Sequence[object]], error: type[OpnpError], message: str
) -> None:
    path = tmp_path / f"scores.{ending}"
    write_score_table(path, COLUMNS | changes)
    with pytest.raises(error, match=message):
        read_score_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", b"", "has no column `score`"),
        ("scores.csv", b"index,p_value\n1,0.5\n", "has no column `score`"),
        ("scores.csv", b"index,score\n1\n", "line 2: expected 2 values, got 1"),
        ("scores.csv", b"index,score\n1,\xff\n", "cannot be read as a score file"),
        ("scores.csv", b'score\n"1\n', "cannot be read as a score file"),
        ("scores.parquet", b"", "cannot be read as a score file"),
        ("scores.parquet", b"PAR1 or not", "cannot be read as a score file"),
        ("scores.txt", b"score\n1\n", r"must end in .csv or .parquet, got '.txt'"),
        ("scores", b"score\n1\n", "got 'no ending'"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFileError, match=message):
        read_score_table(tmp_path / name)


def test_marks_and_blank_lines_of_editors_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes(b"\xef\xbb\xbfscore,is_ood\r\n1.5,TRUE\r\n\r\n2.5,false\r\n")
    table = read_score_table(tmp_path / "scores.csv")
    assert table.is_ood is not None
    assert (table.scores.tolist(), table.is_ood.tolist()) == ([1.5, 2.5], [True, False])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.csv does not exist"):
        read_score_table(tmp_path / "none.csv")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_score_table(tmp_path / "scores.parquet", COLUMNS)
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install 'opnp"):
        read_score_table(tmp_path / "scores.parquet")


@pytest.mark.parametrize("part", [4, 100, 400])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, part: int) -> None:
    write_score_table(tmp_path / "whole.parquet", COLUMNS)
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "scores.parquet").write_bytes(content[:-part])
    with pytest.raises(DataFileError, match="cannot be read as a score file"):
        read_score_table(tmp_path / "scores.parquet")


def test_verdicts_are_no_scores(tmp_path: Path) -> None:
    write_score_table(tmp_path / "scores.parquet", {"score": [True, False]})
    with pytest.raises(DataFileError, match="`score` of row 0 is True"):
        read_score_table(tmp_path / "scores.parquet")

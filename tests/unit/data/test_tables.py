"""Score files: every bit of every number, as CSV and as Parquet; what is none is named."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import Table, parquet

from opnp.data import open_features, read_features, tables, write_score_table
from opnp.data.tables import read_feature_table, read_score_table
from opnp.errors import ColumnWarning, DataFileError, EmptyDataError, MissingExtraError, MissingFileError, OpnpError

_HARD = [1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789, float("inf"), -1e-7]
SCORES = [*_HARD, *torch.randn(47, generator=torch.Generator().manual_seed(0)).tolist()]
ROWS = len(SCORES)
COLUMNS: dict[str, Sequence[Any]] = {
    "index": list(range(ROWS)),
    "name": [f'a, "b"\n größe {row}.png' for row in range(ROWS)],
    "score": SCORES,
    "p_value": [(1 + row) / (ROWS + 1) for row in range(ROWS)],
    "is_ood": [row % 3 == 0 for row in range(ROWS)],
    "predicted_class": [row % 4 for row in range(ROWS)],
    "calibration_samples": [30 + row % 4 for row in range(ROWS)],
    "calibration_group": [f"class {row % 4}" for row in range(ROWS)],
}
both = pytest.mark.parametrize("ending", ["csv", "parquet"])


@pytest.mark.parametrize("ending", ["csv", "parquet", "PARQUET"])
def test_what_was_written_comes_back(tmp_path: Path, ending: str) -> None:
    path, again = tmp_path / f"scores.{ending}", tmp_path / f"again.{ending}"
    for place in (path, again):
        write_score_table(str(place), COLUMNS)
    assert path.read_bytes() == again.read_bytes()
    table = read_score_table(path)
    assert table.p_values is not None
    assert table.is_ood is not None
    assert torch.equal(table.scores.view(torch.int64), torch.tensor(SCORES, dtype=torch.float64).view(torch.int64))
    assert table.p_values.tolist() == COLUMNS["p_value"]
    assert table.is_ood.tolist() == COLUMNS["is_ood"]
    assert table.classes is not None
    assert table.calibration_samples is not None
    assert table.classes.tolist() == COLUMNS["predicted_class"]
    assert table.calibration_samples.tolist() == COLUMNS["calibration_samples"]
    assert table.calibration_groups == tuple(COLUMNS["calibration_group"])


def test_the_files_are_plain_ones(tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        write_score_table(tmp_path / f"s.{ending}", {"name": ["a,b", "\udcff"], "score": [0.1, 2.0], "x": ["y", None]})
        write_score_table(tmp_path / f"empty.{ending}", {"name": [], "score": []})
    assert (tmp_path / "s.csv").read_bytes() == b'name,score,x\n"a,b",0.1,y\n\\udcff,2.0,\n'
    assert (tmp_path / "empty.csv").read_bytes() == b"name,score\n"
    expected = {"name": ["a,b", "\\udcff"], "score": [0.1, 2.0], "x": ["y", None]}
    assert parquet.read_table(tmp_path / "s.parquet").to_pydict() == expected
    assert parquet.read_table(tmp_path / "empty.parquet").column_names == ["name", "score"]


@both
def test_without_a_calibration_there_are_scores_alone(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    for columns in (COLUMNS | {"p_value": [None] * ROWS, "is_ood": [None] * ROWS}, {"score": SCORES}):
        write_score_table(path, columns)
        table = read_score_table(path)
        assert (table.scores.tolist(), table.p_values, table.is_ood) == (SCORES, None, None)


@both
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"score": ["x"] * ROWS}, DataFileError, "`score` of row 0 is 'x'"),
        ({"score": [True] * ROWS}, DataFileError, "`score` of row 0 is '?True"),
        ({"score": [float("nan")] * ROWS}, DataFileError, r"`score` is NaN in rows 0, 1, 2, 3, 4, \.\.\."),
        ({"score": [None] * ROWS}, DataFileError, "holds no scores"),
        ({"score": [None, *SCORES[1:]]}, DataFileError, r"`score` has no value in 1 of 54 rows \(rows 0\)"),
        ({"p_value": [1.5] * ROWS}, DataFileError, "p-values lie above 0 and at most at 1, got 1.5 to 1.5"),
        ({"is_ood": ["maybe"] * ROWS}, DataFileError, "`is_ood` of row 0 is 'maybe'"),
        ({"calibration_samples": [0.5] * ROWS}, DataFileError, "`calibration_samples` of row 0 is '?0.5"),
        ({"predicted_class": [-1] * ROWS}, DataFileError, "`predicted_class` of row 0 is '?-1"),
        ({"calibration_group": [None, *["all"] * (ROWS - 1)]}, DataFileError, "`calibration_group` has no value in 1"),
        ({name: [] for name in COLUMNS}, EmptyDataError, "holds no rows"),
    ],
)
def test_values_that_are_none_are_named(
    tmp_path: Path, ending: str, changes: dict[str, Sequence[object]], error: type[OpnpError], message: str
) -> None:
    write_score_table(tmp_path / f"scores.{ending}", COLUMNS | changes)
    with pytest.raises(error, match=message):
        read_score_table(tmp_path / f"scores.{ending}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", b"index,p_value\n1,0.5\n", "has no column `score`"),
        ("scores.csv", b"index,score\n1\n", "line 2: expected 2 values, got 1"),
        ("scores.parquet", b"", "cannot be read as a score file"),
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


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.parquet").touch()
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[bench\]'.*\.csv"):
        write_score_table(tmp_path / "scores.parquet", COLUMNS)
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[bench\]'"):
        read_score_table(tmp_path / "there.parquet")
    write_score_table(tmp_path / "scores.csv", COLUMNS)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("scores.txt", DataFileError, r"must end in \.csv or \.parquet, got '\.txt'"),
        ("scores", DataFileError, "got 'no ending'"),
        ("missing/scores.csv", MissingFileError, "missing is no folder"),
        ("missing/scores.parquet", MissingFileError, "missing is no folder"),
    ],
)
def test_where_no_table_can_be_written(tmp_path: Path, name: str, error: type[OpnpError], message: str) -> None:
    with pytest.raises(error, match=message):
        write_score_table(tmp_path / name, COLUMNS)
    assert not list(tmp_path.iterdir())


@both
def test_columns_of_unequal_length_leave_no_file(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=r"length|longer|shorter"):
        write_score_table(tmp_path / f"scores.{ending}", {"index": [1, 2], "score": [0.5]})
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- features
FEATURES: dict[str, list[Any]] = {
    "name": ["a", "b", "c"],
    "width": [0.1, -2e300, 5e-324],
    "count": [3, 0, -1],
    "label": [2, 0, -1],
    "is_new": [True, False, True],
}


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [
            ",".join(columns),
            *(",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        parquet.write_table(Table.from_pydict(columns), path)
    return path


@both
@pytest.mark.filterwarnings("ignore:.*left out")
def test_columns_of_numbers_are_features_and_label_the_labels(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"table.{ending}", FEATURES)
    features, labels, names = read_feature_table(path, feature_names=["width", "count"])
    assert names == ("width", "count")
    wanted = [FEATURES["width"], [float(count) for count in FEATURES["count"]]]
    assert features.T.tolist() == wanted
    assert labels is not None
    assert labels.tolist() == FEATURES["label"]
    found, source = read_features(path), open_features(path)
    assert (source.rows, source.width, source.is_labelled, source.first_row) == (3, 2, True, 0)
    rows, places = source.read(1, 3)
    assert torch.equal(rows, found.features[1:])
    assert places is not None
    assert places.tolist() == [0, -1]
    before = source.digest()
    write_table(path, FEATURES | {"count": [3, 0, -2]})
    assert open_features(path).digest() != before


@both
def test_what_is_left_out_is_said_with_the_reason(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"table.{ending}", FEATURES)
    kinds = r"name \((text|string)\), is_new \((true or false|bool)\)"
    with pytest.warns(ColumnWarning, match=f"2 columns left out, which hold no numbers: {kinds}"):
        assert open_features(path).feature_names == ("width", "count")
    with pytest.warns(ColumnWarning, match="3 columns left out, which the detector was not fitted on: name, width"):
        assert read_features(path, feature_names=["count"]).features.tolist() == [[3], [0], [-1]]


@both
def test_columns_are_taken_by_name(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"table.{ending}", {name: FEATURES[name] for name in ("count", "width", "label")})
    features, labels, names = read_feature_table(path, feature_names=("width", "count"))
    assert names == ("width", "count")
    assert features[:, 1].tolist() == FEATURES["count"]
    assert open_features(path).digest() == open_features(path, feature_names=names).digest()
    assert labels is not None
    with pytest.raises(DataFileError, match=r"lacks the columns `weight`, `height` of the 3 .*fitted on"):
        read_features(path, feature_names=("width", "weight", "height"))


@both
@pytest.mark.parametrize("values", [["1,5", "-,5", "3"], ["1.234,5", "1,0", "2,25"]])
def test_decimal_commas_are_refused(tmp_path: Path, ending: str, values: list[str]) -> None:
    path = tmp_path / f"table.{ending}"
    if ending == "csv":
        path.write_text("a,b\n" + "".join(f'1,"{value}"\n' for value in values), encoding="utf-8")
    else:
        write_table(path, {"a": [1, 1, 1], "b": values if values[-1] != "3" else [*values[:2], "3,0"]})
    with pytest.raises(DataFileError, match=r"`b` holds numbers with a comma, such as '1.*decimal=','"):
        read_feature_table(path)


def test_short_floats_of_parquet_stay_short(tmp_path: Path) -> None:
    columns = {name: torch.rand(4).numpy() for name in "ab"}
    parquet.write_table(Table.from_pydict(columns), tmp_path / "t.parquet")
    assert read_feature_table(tmp_path / "t.parquet")[0].dtype == torch.float32


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": [0.1, None, 2.0]}, "`width` (is no number in row 1|has no value in 1 of 3 rows).*as in training"),
        ({"label": ["cat", "dog", "cat"]}, "`label` must hold the number of each row's class"),
        ({"label": [0.5, 1.0, 0.0]}, "must be class indices, got 0.5"),
        ({"labels": [0, 1, 2]}, "holds both `labels` and `label`"),
        ({"width": ["x", "y", "z"], "count": [None, None, None]}, "no column of numbers"),
        (
            {"name": [1, 2, 3], "is_new": [1, 0, 1], "__index_level_0__": [0, 1, 2]},
            "a column of numbers has no name.*`index=False`",
        ),
    ],
)
def test_a_table_that_is_no_features_is_refused(
    tmp_path: Path, ending: str, changes: dict[str, list[Any]], message: str
) -> None:
    path = write_table(tmp_path / f"table.{ending}", FEATURES | changes)
    with pytest.raises(DataFileError, match=message):
        open_features(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.5,2\n3,4\n", "the first line must name the columns"),
        ("a,a\n3,4\n", "2 columns called `a`"),
        ("a;b\n1,5;2,5\n", r"not separated by commas\. .*decimal=','"),
        ("a\tb\n1\t2\n", "not separated by commas"),
        (",a\n0,4\n1,5\n", "a column of numbers has no name"),
        ("a,b\n0\n", "expected 2 values, got 1"),
        ("a,b\n0,x\n1,2\n", "`b` is no number in row 0 .'x'."),
        ('a,b\n0,"x\n', "cannot be read as a table of features"),
    ],
)
def test_a_csv_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError, match=message):
        read_feature_table(tmp_path / "t.csv")

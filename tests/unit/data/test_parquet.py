"""Features in Parquet files: ranges over row groups and files, rows as lists or columns, and what is refused."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from opnp.data import FeatureSource, open_features, read_features
from opnp.data.addresses import ImagesAtAddress
from opnp.data.parquet import ParquetFeatures, is_parquet, parquet_dataset
from opnp.data.tables import feature_table
from opnp.errors import ColumnWarning, DataFileError, EmptyDataError, OptionError

ROWS = np.random.default_rng(0).random((20, 3)).astype(np.float32)
COLUMNS: dict[str, Any] = {**dict(zip("abc", ROWS.T, strict=True)), "label": np.arange(20)}


def written(path: Path, columns: dict[str, Any], *, group: int = 4) -> Path:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def part(rows: slice) -> dict[str, Any]:
    return {name: values[rows] for name, values in COLUMNS.items()}


def test_files_of_a_folder_are_one_source_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    written(folder / "1.parquet", part(slice(7, 20)))
    written(folder / "0.parquet", part(slice(7)))
    source = ParquetFeatures(folder)
    assert isinstance(source, FeatureSource)
    assert (source.rows, source.width, source.is_labelled, source.first_row) == (20, 3, True, 0)
    for start, stop in ((0, 20), (3, 5), (6, 13), (19, 20)):
        features, labels = source.read(start, stop)
        assert labels is not None
        assert torch.equal(features, torch.from_numpy(ROWS[start:stop]))
        assert labels.tolist() == list(range(start, stop))
    with pytest.raises(OptionError, match="Rows must lie in 0 to 20"):
        source.read(3, 21)


def test_a_row_group_is_decoded_in_batches_and_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(path: Any, columns: Any, *rest: Any, **options: Any) -> Any:
        decoded.append(len(next(iter(columns.values()))))
        return feature_table(path, columns, *rest, **options)

    decoded = list[int]()
    monkeypatch.setattr("opnp.data.parquet._BATCH", 3)
    monkeypatch.setattr("opnp.data.parquet.feature_table", counted)
    source = ParquetFeatures(written(tmp_path / "rows.parquet", COLUMNS, group=20))
    decoded.clear()
    for start, stop in ((0, 2), (1, 7), (11, 12), (13, 20)):
        features, labels = source.read(start, stop)
        assert labels is not None
        assert torch.equal(features, torch.from_numpy(ROWS[start:stop]))
        assert labels.tolist() == list(range(start, stop))
    assert decoded == [3] * 6 + [2]
    assert torch.equal(source.read(4, 5)[0], torch.from_numpy(ROWS[4:5]))
    source = ParquetFeatures(written(tmp_path / "lists.parquet", {"features": [[1.0]] * 3 + [[1.0] * 2]}))
    with pytest.raises(DataFileError, match="of one length, got lengths 1, 2"):
        source.read(0, 4)


def test_files_of_other_columns_or_types_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "0.parquet", part(slice(7)))
    reordered = dict(reversed(part(slice(7, 20)).items()))
    written(tmp_path / "1.parquet", reordered)
    assert torch.equal(ParquetFeatures(tmp_path).read(0, 20)[0], torch.from_numpy(ROWS))
    without = {name: values for name, values in reordered.items() if name != "b"}
    changes = ((without, "`b` is missing in"), (reordered | {"d": ROWS[7:, 0]}, "`d` is float in .* and missing in"))
    for columns, message in (*changes, (reordered | {"b": ROWS[7:, 1].astype(float)}, "`b` is double in .* float in")):
        written(tmp_path / "1.parquet", columns)
        with pytest.raises(DataFileError, match=f"^{tmp_path}: files must have the same columns .*{message}"):
            ParquetFeatures(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(EmptyDataError, match="holds no Parquet file"):
        ParquetFeatures(tmp_path / "none")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    plain: dict[str, Any] = {
        "compression": "none",
        "use_dictionary": False,
        "row_group_size": 10,
        "write_statistics": False,
    }
    parquet.write_table(pa.table({"a": ROWS[:, 0]}), path, write_page_checksum=True, **plain)
    content = bytearray(path.read_bytes())
    content[content.index(ROWS[15, 0].tobytes())] ^= 1
    path.write_bytes(content)
    source = ParquetFeatures(path)
    assert torch.equal(source.read(0, 10)[0], torch.from_numpy(ROWS[:10, :1]))
    with pytest.raises(DataFileError, match=r"rows\.parquet cannot be read as Parquet"):
        source.read(10, 20)
    with pytest.raises(OSError, match="CRC"):
        parquet_dataset(str(path)).to_table()


def test_one_file_is_read_as_a_table_is(tmp_path: Path) -> None:
    path = written(tmp_path / "mixed.parquet", COLUMNS | {"d": np.arange(20), "half": ROWS[:, 0].astype(np.float16)})
    expected, (features, labels) = read_features(path), ParquetFeatures(path).read(0, 20)
    assert expected.labels is not None
    assert labels is not None
    assert features.dtype == expected.features.dtype
    assert torch.equal(features, expected.features)
    assert torch.equal(labels, expected.labels)


def test_columns_are_taken_by_the_names_of_the_fit(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", COLUMNS)
    with pytest.warns(ColumnWarning, match="1 column left out, which the detector was not fitted on: b"):
        source = ParquetFeatures(path, feature_names=("c", "a"))
    assert source.feature_names == ("c", "a")
    assert torch.equal(source.read(0, 20)[0], torch.from_numpy(ROWS[:, [2, 0]]))
    with pytest.raises(DataFileError, match="lacks the column `z` of the 2 that the detector was fitted on"):
        ParquetFeatures(path, feature_names=("a", "z"))


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"features": ROWS[:, 0], "a": ROWS[:, 1]}, None, None),
        ({"features": list(ROWS)}, None, None),
        ({"features": list(ROWS), "id": np.arange(20)}, None, "1 column left out, as `features` holds whole rows: id"),
        ({"features": [["x"]] * 20, "a": ROWS[:, 1]}, None, r"hold no numbers: features \(list<element: string>\)"),
        ({"features": list(ROWS), "a": ROWS[:, 1]}, ["a"], "was not fitted on: features"),
        ({"features": list(ROWS)}, ["a"], "lacks the column `a`"),
        ({"a": ROWS[:, 0], "b": ["1,5", "2,5"] * 10}, None, "`b` holds numbers with a comma, such as '1,5'"),
        ({"a": ROWS[:, 0], "label": ["x"] * 20}, None, "`label` must hold the number of each row's class"),
        ({"a": ROWS[:, 0], "when": [True] * 20}, None, r"which hold no numbers: when \(bool\)"),
    ],
)
def test_one_file_gives_the_answers_of_a_table(
    tmp_path: Path, columns: dict[str, Any], names: list[str] | None, message: str | None
) -> None:
    path, told = written(tmp_path / "rows.parquet", columns), list[Any]()
    for opened in (open_features, ParquetFeatures):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                source = opened(path, feature_names=names)
                told.append((source.read(0, 20)[0].tolist(), source.feature_names))
            except DataFileError as error:
                told.append(str(error))
        text = " ".join([*(str(each.message) for each in caught), *(each for each in told if isinstance(each, str))])
        assert re.search(message, text) if message else not text
    assert told[0] == told[1]


@pytest.mark.parametrize("kind", ["list", "fixed", "double"])
def test_a_column_of_lists_holds_whole_rows(tmp_path: Path, kind: str) -> None:
    rows = ROWS.astype(np.float64) if kind == "double" else ROWS
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 3) if kind == "fixed" else list(rows)
    source = ParquetFeatures(written(tmp_path / "rows.parquet", {"features": column}))
    features, labels = source.read(2, 11)
    assert labels is None
    assert torch.equal(features, torch.from_numpy(rows[2:11]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, None]}, "`a` has no value in 1 of 2 rows"),
        ({"a": ["x", "y"]}, "holds no column of numbers"),
        ({" ": [1.0, 2.0]}, "has no name"),
        ({"features": [[1.0], [1.0, 2.0, 3.0]]}, "of one length"),
        ({"features": [[1.0], None]}, "no value in some places"),
        ({"features": [[1], [2]]}, "floating-point"),
    ],
)
def test_what_is_no_feature_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        ParquetFeatures(written(tmp_path / "rows.parquet", columns))


def test_files_without_rows_and_what_is_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="holds no rows"):
        ParquetFeatures(written(tmp_path / "rows.parquet", {"a": pa.array([], pa.float32())}))
    (tmp_path / "text.parquet").write_text("no table", encoding="utf-8")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(DataFileError, match=f"{name} cannot be read as Parquet"):
            ParquetFeatures(tmp_path / name)


def test_addresses_that_cannot_be_opened_are_told_which_can() -> None:
    for opened in (is_parquet, ParquetFeatures, ImagesAtAddress.of):
        with pytest.raises(DataFileError, match=r"^http://h/x cannot be opened .* begins with s3://, gs://, "):
            opened("http://h/x")
        with pytest.raises(DataFileError, match=r"write `s3://bucket/folder\?scheme=http&endpoint_override=host:9000`"):
            opened("s3://b/f?endpoint_override=http:/localhost:9000")


def test_another_content_has_another_digest(tmp_path: Path) -> None:
    digests = {ParquetFeatures(written(tmp_path / "a.parquet", {"a": [number]})).digest() for number in (1.0, 2.0, 1.0)}
    assert len(digests) == 2


def test_parquet_is_told_by_its_name_or_by_what_a_folder_holds(tmp_path: Path) -> None:
    written(tmp_path / "rows" / "0.parquet", {"a": [1.0]})
    for folder, is_one in ((tmp_path / "rows", True), (tmp_path, False)):  # one that lies deeper does not count
        assert [is_parquet(folder), is_parquet(f"file://{folder}")] == [is_one, is_one]
    assert is_parquet("a.PARQUET")

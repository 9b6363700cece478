"""Feature shards: what is written is what is read, in any cut; unfinished and changed folders are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import FeatureShardWriter, FeatureSource, open_features, write_features
from opnp.data.shards import INDEX_NAME
from opnp.errors import (
    DataFileError,
    EmptyDataError,
    InputTypeError,
    MissingFileError,
    NonFiniteError,
    OptionError,
    ShapeError,
)

ROWS, WIDTH = 100, 6
FEATURES = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).half()
LABELS = torch.arange(ROWS) % 7


def written(folder: Path, *, rows_per_shard: int = 30, cut: int = 17, labels: Tensor | None = LABELS) -> Path:
    """Write the features in blocks of some size, and return the folder."""
    with FeatureShardWriter(folder, rows_per_shard=rows_per_shard) as writer:
        for start in range(0, ROWS, cut):
            rows = slice(start, start + cut)
            writer.write(FEATURES[rows], None if labels is None else labels[rows])
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return written(tmp_path / "shards")


@pytest.mark.parametrize("rows_per_shard", [1, 7, 30, 50, 100, 101])
@pytest.mark.parametrize("cut", [1, 30, 100])
def test_every_range_is_what_was_written(tmp_path: Path, rows_per_shard: int, cut: int) -> None:
    source = open_features(written(tmp_path / "shards", rows_per_shard=rows_per_shard, cut=cut))
    assert isinstance(source, FeatureSource)
    assert (source.rows, source.width, source.dtype, source.is_labelled) == (ROWS, WIDTH, torch.float16, True)
    for start, stop in [(0, ROWS), (0, 0), (29, 31), (30, 60), (99, 100), (5, 95), (100, 100), (0, 1)]:
        features, labels = source.read(start, stop)
        assert labels is not None
        assert features.equal(FEATURES[start:stop])
        assert labels.equal(LABELS[start:stop])
    files = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert len(files) == 1 + -(-ROWS // rows_per_shard)
    source.verify()


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_plain_file_is_a_source_as_well(tmp_path: Path, labels: Tensor | None) -> None:
    write_features(tmp_path / "file", FEATURES, labels=labels)
    source = open_features(tmp_path / "file")
    features, targets = source.read(10, 20)
    assert features.equal(FEATURES[10:20])
    assert (targets is None) is (labels is None) is (not source.is_labelled)
    assert (source.rows, source.first_row) == (ROWS, 0)
    for start, stop in [(-1, 5), (0, ROWS + 1), (6, 5)]:
        with pytest.raises(OptionError, match="Rows must lie in 0 to 100"):
            source.read(start, stop)


def test_shards_without_labels(tmp_path: Path) -> None:
    source = open_features(written(tmp_path / "shards", labels=None))
    assert not source.is_labelled
    assert source.read(0, 60)[1] is None


def test_what_is_read_is_a_view_of_the_mapped_file(shards: Path) -> None:
    source = open_features(shards)
    one, _ = source.read(0, 10)
    other, _ = source.read(10, 20)
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    assert source._mapped is not None
    source.read(40, 50)
    assert source._mapped[0] == 1  # one file at a time
    source.close()
    assert source._mapped is None
    assert one.equal(FEATURES[:10])  # what was handed out stays


def test_the_dtype_on_disk_and_its_overflow(tmp_path: Path) -> None:
    wide = FEATURES.double() * 1e6
    with FeatureShardWriter(tmp_path / "wide", dtype=torch.float32) as writer:
        writer.write(wide)
    assert open_features(tmp_path / "wide").read(0, ROWS)[0].equal(wide.float())
    with (
        pytest.raises(NonFiniteError, match=r"`features` in torch.float16 must be finite, got 0 NaN and"),
        FeatureShardWriter(tmp_path / "narrow") as writer,
    ):
        writer.write(wide)


def test_the_digest_is_one_of_the_content(tmp_path: Path, shards: Path) -> None:
    digest = open_features(shards).digest()
    assert open_features(written(tmp_path / "again", cut=50)).digest() == digest
    assert open_features(written(tmp_path / "other", labels=LABELS.flip(0))).digest() != digest
    write_features(tmp_path / "file", FEATURES)
    plain = open_features(tmp_path / "file").digest()
    write_features(tmp_path / "file", FEATURES + 1)
    assert open_features(tmp_path / "file").digest() != plain


# -------------------------------------------------------------------------------------------- what is not finished
def test_a_folder_without_an_index_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    writer = FeatureShardWriter(folder, rows_per_shard=30)
    writer.write(FEATURES)
    assert len(list(folder.iterdir())) == 3
    with pytest.raises(MissingFileError, match=r"is a folder without index\.json: expected a safetensors file"):
        open_features(folder)
    (folder / ".features-00003.safetensors.abc.part").touch()  # as a writer that was killed leaves it
    written(folder)
    assert open_features(folder).rows == ROWS
    assert not list(folder.glob(".*"))


def test_an_error_removes_what_was_written(tmp_path: Path) -> None:
    writer = FeatureShardWriter(tmp_path, rows_per_shard=9)
    writer.write(FEATURES)
    assert len(list(tmp_path.iterdir())) == 11
    with pytest.raises(ShapeError, match="must have 6 columns"), writer:
        writer.write(FEATURES[:, :5])
    assert not list(tmp_path.iterdir())


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="No row was written"), FeatureShardWriter(tmp_path) as writer:
        writer.write(FEATURES[:0])
    assert not list(tmp_path.iterdir())


def test_a_finished_folder_is_replaced_only_when_asked(shards: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds feature shards already.*`is_replacing=True`"):
        FeatureShardWriter(shards)
    assert open_features(shards).rows == ROWS
    with FeatureShardWriter(shards, is_replacing=True) as writer:
        assert not (shards / INDEX_NAME).exists()
        writer.write(FEATURES[:10])
    assert open_features(shards).rows == 10
    assert len(list(shards.iterdir())) == 2


def test_a_closed_writer_takes_nothing_more(tmp_path: Path) -> None:
    writer = FeatureShardWriter(tmp_path)
    writer.write(FEATURES)
    writer.close()
    writer.close()
    with pytest.raises(OptionError, match="This writer is closed"):
        writer.write(FEATURES)
    assert open_features(tmp_path).rows == ROWS


# --------------------------------------------------------------------------------------------------- what is changed
def test_missing_truncated_and_damaged_shards(shards: Path) -> None:
    path = shards / "features-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataFileError, match=rf"features-00001\.safetensors has {len(content) - 1} bytes, but index"):
        open_features(shards)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"features-00001\.safetensors is missing"):
        open_features(shards)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataFileError, match=r"features-00001\.safetensors is damaged"):
        open_features(shards).verify()


def edited(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    (folder / INDEX_NAME).write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "it is no index of opnp"),
        ({"version": 2}, "it has version 2, and this opnp reads version 1"),
        ({"rows": 99}, "do not add up"),
        ({"rows": 0, "shards": []}, "do not add up"),
        ({"shards": [{"file": "../x", "rows": 100, "bytes": 1, "sha256": ""}]}, "do not add up"),
        ({"shards": [{"name": "x"}]}, "lacks or garbles something"),
        ({"shards": 3}, "lacks or garbles something"),
        ({"width": 7}, "not those that the index describes"),
        ({"is_labelled": False}, "not those that the index describes"),
        ({"dtype": "float32"}, "not those that the index describes"),
    ],
)
def test_an_index_of_other_content(shards: Path, changes: dict[str, object], message: str) -> None:
    edited(shards, **changes)
    with pytest.raises(DataFileError, match=message) as caught:
        open_features(shards)
    assert str(shards) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"null"])
def test_an_index_that_is_none(shards: Path, content: bytes) -> None:
    (shards / INDEX_NAME).write_bytes(content)
    with pytest.raises(DataFileError, match=r"index\.json cannot be read.*Write the folder again"):
        open_features(shards)


def test_a_shard_that_does_not_continue_the_first(shards: Path) -> None:
    path = shards / "features-00001.safetensors"
    save_file({"features": FEATURES[:30].clone()}, path)
    index = json.loads((shards / INDEX_NAME).read_text())
    index["shards"][1]["bytes"] = path.stat().st_size
    edited(shards, shards=index["shards"])
    source = open_features(shards)
    source.read(0, 30)
    with pytest.raises(DataFileError, match="without labels, which is not what its index says"):
        source.read(30, 40)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((FEATURES.long(), None), InputTypeError, "`features` must be floating point"),
        ((FEATURES[0], None), ShapeError, r"`features` must have shape \(batch, features\)"),
        ((FEATURES, LABELS[:5]), ShapeError, r"`labels` must have shape \(100,\)"),
        ((FEATURES, LABELS.float()), InputTypeError, "`labels` must be integer class indices"),
        ((FEATURES, None), InputTypeError, "`labels` must come with every block or with none"),
        ((FEATURES / 0, LABELS), NonFiniteError, r"rows 10, 11"),
    ],
)
def test_what_the_writer_refuses(tmp_path: Path, arguments: Any, error: type[Exception], message: str) -> None:
    writer = FeatureShardWriter(tmp_path)
    writer.write(FEATURES[:10], LABELS[:10])
    with pytest.raises(error, match=message):
        writer.write(*arguments)
    writer.close()
    assert open_features(tmp_path).rows == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_shard": 0}, "`rows_per_shard` must be a positive number"),
        ({"rows_per_shard": True}, "`rows_per_shard` must be a positive number"),
        ({"rows_per_shard": 2.5}, "`rows_per_shard` must be a positive number"),
        ({"dtype": torch.int64}, "`dtype` must be a floating dtype"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FeatureShardWriter(tmp_path / "shards", **options)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "missing" / "shards"):
        with pytest.raises(MissingFileError, match="must be a folder"):
            FeatureShardWriter(place)

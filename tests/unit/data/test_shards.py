"""Feature shards: what is written is what is read, in any cut; unfinished and changed folders are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import FeatureShardWriter, FeatureSource, open_features
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


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("rows_per_shard", [1, 7, 30, 50, 100, 101])
@pytest.mark.parametrize("cut", [1, 30, 100])
def test_every_range_is_what_was_written(tmp_path: Path, rows_per_shard: int, cut: int, labels: Tensor | None) -> None:
    source = open_features(written(tmp_path / "shards", rows_per_shard=rows_per_shard, cut=cut, labels=labels))
    assert isinstance(source, FeatureSource)
    layout = (source.rows, source.width, source.dtype, source.is_labelled)
    assert layout == (ROWS, WIDTH, torch.float16, labels is not None)
    for rows in [(0, ROWS), (0, 0), (29, 31), (30, 60), (99, 100), (5, 95), (100, 100), (0, 1)]:
        features, targets = source.read(*rows)
        assert features.equal(FEATURES[slice(*rows)])
        assert targets is None if labels is None else labels[slice(*rows)].equal(targets)  # type: ignore[arg-type]  # a tensor, as there are labels
    assert len(list((tmp_path / "shards").iterdir())) == 1 + -(-ROWS // rows_per_shard)
    source.verify()


def test_what_is_read_is_a_view_of_one_mapped_file(shards: Path) -> None:
    source = open_features(shards)
    one, other = (source.read(*rows)[0] for rows in ((0, 10), (10, 20)))
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    source.read(40, 50)
    source.close()
    assert one.equal(FEATURES[:10])  # what was handed out stays


def test_the_dtype_on_disk_and_its_overflow(tmp_path: Path) -> None:
    wide = FEATURES.double() * 1e6
    with FeatureShardWriter(tmp_path / "wide", dtype=torch.float32) as writer:
        writer.write(wide)
    assert open_features(tmp_path / "wide").read(0, ROWS)[0].equal(wide.float())
    message = r"`features` in torch.float16 must be finite, got 0 NaN and"
    with pytest.raises(NonFiniteError, match=message), FeatureShardWriter(tmp_path / "narrow") as writer:
        writer.write(wide)


def test_the_digest_is_one_of_the_content(tmp_path: Path, shards: Path) -> None:
    digest = open_features(shards).digest()
    assert open_features(written(tmp_path / "again", cut=50)).digest() == digest
    assert open_features(written(tmp_path / "other", labels=LABELS.flip(0))).digest() != digest


def test_a_folder_without_an_index_is_not_finished(tmp_path: Path) -> None:
    FeatureShardWriter(tmp_path, rows_per_shard=30).write(FEATURES)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(MissingFileError, match=r"is a folder without index\.json: expected a safetensors file"):
        open_features(tmp_path)
    (tmp_path / ".features-00003.safetensors.abc.part").touch()  # as a writer that was killed leaves it
    assert open_features(written(tmp_path)).rows == ROWS
    assert not list(tmp_path.glob(".*"))


def test_an_error_removes_what_was_written(tmp_path: Path) -> None:
    writer = FeatureShardWriter(tmp_path, rows_per_shard=9)
    writer.write(FEATURES)
    assert len(list(tmp_path.iterdir())) == 11
    with pytest.raises(ShapeError, match="must have 6 columns"), writer:
        writer.write(FEATURES[:, :5])
    with pytest.raises(EmptyDataError, match="No row was written"), FeatureShardWriter(tmp_path) as writer:
        writer.write(FEATURES[:0])
    assert not list(tmp_path.iterdir())


def test_a_finished_folder_is_replaced_only_when_asked(shards: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds feature shards already.*`is_replacing=True`"):
        FeatureShardWriter(shards)
    assert open_features(shards).rows == ROWS
    writer = FeatureShardWriter(shards, is_replacing=True)
    assert not (shards / INDEX_NAME).exists()
    writer.write(FEATURES[:10])
    writer.close()
    writer.close()
    with pytest.raises(OptionError, match="This writer is closed"):
        writer.write(FEATURES)
    assert open_features(shards).rows == 10
    assert len(list(shards.iterdir())) == 2


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "it is no index of opnp"),
        ({"version": 2}, "it has version 2, and this opnp reads version 1"),
        ({"rows": 99}, "do not add up"),
        ({"rows": 0, "shards": []}, "do not add up"),
        ({"shards": [{"file": "../x", "rows": 100, "bytes": 1, "sha256": ""}]}, "do not add up"),
        ({"shards": [{"name": "x"}]}, "lacks or garbles something"),
        ({"width": 7}, "not those that the index describes"),
    ],
)
def test_an_index_of_other_content(shards: Path, changes: dict[str, object], message: str) -> None:
    index = json.loads((shards / INDEX_NAME).read_text())
    (shards / INDEX_NAME).write_text(json.dumps(index | changes))
    with pytest.raises(DataFileError, match=rf"shards.*{message}"):
        open_features(shards)


def test_a_shard_that_does_not_continue_the_first(shards: Path) -> None:
    path = shards / "features-00001.safetensors"
    save_file({"features": FEATURES[:30].clone()}, path)
    index = json.loads((shards / INDEX_NAME).read_text())
    index["shards"][1]["bytes"] = path.stat().st_size
    (shards / INDEX_NAME).write_text(json.dumps(index))
    source = open_features(shards)
    source.read(0, 30)
    with pytest.raises(DataFileError, match="without labels, which is not what its index says"):
        source.read(30, 40)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((FEATURES.long(), None), InputTypeError, "`features` must be floating point"),
        ((FEATURES, LABELS[:5]), ShapeError, r"`labels` must have shape \(100,\)"),
        ((FEATURES, LABELS + 0.5), InputTypeError, "`labels` must be class indices"),
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
    ("place", "options", "error", "message"),
    [
        ("shards", {"rows_per_shard": 0}, OptionError, "`rows_per_shard` must be a positive number"),
        ("shards", {"dtype": torch.int64}, OptionError, "`dtype` must be a floating dtype"),
        ("file", {}, MissingFileError, "must be a folder"),
        ("missing/shards", {}, MissingFileError, "must be a folder"),
    ],
)
def test_places_and_options_of_a_writer(tmp_path: Path, place: str, options: Any, error: Any, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message):
        FeatureShardWriter(tmp_path / place, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""Cached features and heads: what is written is what is read, and errors say what is wrong with the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import read_features, read_head, write_features, write_head
from opnp.errors import DataFileError, InputTypeError, MissingFileError, ShapeError

FEATURES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [None, LABELS, LABELS.short()])
def test_features_round_trip(tmp_path: Path, dtype: torch.dtype, labels: Tensor | None) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, FEATURES.to(dtype), labels=labels)
    found = read_features(str(path))
    assert found.features.dtype == dtype
    assert torch.equal(found.features, FEATURES.to(dtype))
    if labels is None:
        assert found.labels is None
    else:
        assert found.labels is not None
        assert found.labels.dtype == labels.dtype
        assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("bias", [None, torch.arange(3.0)])
def test_head_round_trip(tmp_path: Path, bias: Tensor | None) -> None:
    path = tmp_path / "head.safetensors"
    weight = torch.nn.Parameter(FEATURES[:3])
    write_head(path, weight, bias=bias)
    found = read_head(path)
    assert torch.equal(found.weight, weight)
    assert not found.weight.requires_grad
    assert (found.bias is None) is (bias is None)
    assert bias is None or torch.equal(found.bias, bias)  # type: ignore[arg-type]  # not None, as the line above says


def test_parts_of_larger_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_features(path, FEATURES.T[1:3], labels=LABELS[3:5])
    found = read_features(path)
    assert torch.equal(found.features, FEATURES.T[1:3])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]
    assert path.stat().st_size < 400


def test_other_tensors_in_the_file_are_ignored(tmp_path: Path) -> None:
    save_file({"features": FEATURES, "weight": FEATURES.clone(), "ids": LABELS}, tmp_path / "both")
    assert read_features(tmp_path / "both").labels is None
    assert read_head(tmp_path / "both").bias is None


@pytest.mark.parametrize("read", [read_features, read_head])
def test_files_that_cannot_be_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(MissingFileError, match=r"none\.safetensors does not exist: expected"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(MissingFileError, match="is a folder"):
        read(tmp_path)
    path = tmp_path / "file.safetensors"
    for content in (b"", b"a,b\n1,2\n", b"\x93NUMPY" + bytes(100), b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(DataFileError, match=r"file\.safetensors is no readable safetensors file"):
            read(path)


@pytest.mark.parametrize("read", [read_features, read_head])
def test_a_truncated_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    save_file({"features": FEATURES, "weight": FEATURES.clone()}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFileError, match="no readable safetensors file"):
        read(path)


@pytest.mark.parametrize(
    ("read", "tensors", "message"),
    [
        (
            read_features,
            {"labels": LABELS},
            r"must hold the tensor `features` \(cached features\), but it holds labels",
        ),
        (read_features, {}, "must hold the tensor `features`.*but it holds nothing"),
        (read_features, {"features": FEATURES[0]}, r"`features` must have shape \(batch, features\), got \(4,\)"),
        (read_features, {"features": torch.ones(2, 3, 7, 7)}, "`features` must have shape.*Pool"),
        (read_features, {"features": FEATURES.long()}, "`features` must be floating point, got torch.int64"),
        (read_features, {"features": FEATURES, "labels": LABELS[:5]}, r"`labels` must be integers of shape \(6,\)"),
        (read_features, {"features": FEATURES, "labels": LABELS.float()}, "`labels` must be integers.*torch.float32"),
        (read_head, {"bias": LABELS.float()}, "must hold the tensor `weight`.*but it holds bias"),
        (read_head, {"weight": FEATURES[0]}, r"`weight` must have shape \(classes, features\), got \(4,\)"),
        (read_head, {"weight": FEATURES.int()}, "`weight` must be floating point, got torch.int32"),
        (read_head, {"weight": FEATURES, "bias": torch.ones(4)}, r"`bias` must have shape \(6,\), got \(4,\)"),
        (read_head, {"weight": FEATURES, "bias": torch.ones(6, 1)}, r"`bias` must have shape \(6,\), got \(6, 1\)"),
    ],
)
def test_files_of_other_content(
    tmp_path: Path, read: Callable[[Path], object], tensors: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "given.safetensors"
    save_file(tensors, path)
    with pytest.raises(DataFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", [write_features, write_head])
@pytest.mark.parametrize(("given", "error"), [(torch.ones(3), ShapeError), (torch.ones(2, 2).long(), InputTypeError)])
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, write: Any, given: Tensor, error: type[Exception]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "file", given)
    with pytest.raises(error):
        write(tmp_path / "file", [[1.0]] if error is InputTypeError else given[None, None])
    assert not list(tmp_path.iterdir())


def test_writing_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"missing is no folder"):
        write_features(tmp_path / "missing" / "file", FEATURES)
    with pytest.raises(MissingFileError, match=r"missing is no folder"):
        write_head(tmp_path / "missing" / "file", FEATURES)

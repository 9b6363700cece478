"""Training and test samples beside each other, under their usual names."""

from pathlib import Path

import pytest

from opnp.data import train_and_test
from opnp.errors import MissingFileError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("train", "val", "test"), ("train", "test")),
        (("train.safetensors", "val.safetensors"), ("train.safetensors", "val.safetensors")),
        (("train", "train.safetensors", "test.safetensors"), ("train", "test.safetensors")),
    ],
)
def test_names(tmp_path: Path, names: tuple[str, ...], expected: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert train_and_test(tmp_path) == (tmp_path / expected[0], tmp_path / expected[1])


@pytest.mark.parametrize(("name", "missing"), [("test", "train"), ("train", r"test \(or val\)"), ("cat", "train")])
def test_what_is_missing_is_named(tmp_path: Path, name: str, missing: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(MissingFileError, match=f"holds no {missing}: it must hold both train and test"):
        train_and_test(tmp_path)

"""Artifacts: the same bytes twice, no silent damage, no half-written file."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from opnp.artifact import read_artifact, tensors_digest, write_artifact
from opnp.errors import ArtifactError, MissingFileError

TENSORS = {"one": torch.arange(6.0).reshape(2, 3), "two": torch.tensor([1, 2]), "none": torch.empty(0, 3)}
METADATA = {"name": "fc", "ratio": 0.1 + 0.2, "list": [1, None, "x"], "nested": {"b": 1, "a": True}}


def write(path: Path, **options: Any) -> Path:
    arguments = {"kind": "detector", "format_version": 3, "tensors": TENSORS, "metadata": METADATA, **options}
    write_artifact(path, **arguments)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    return read_artifact(path, kind="detector", format_version=3)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.int64, torch.uint8]
)
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    found, metadata = read(write(tmp_path / "file", tensors=tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == dtype
    assert metadata == METADATA


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one").read_bytes()
    other = write(
        tmp_path / "other",
        tensors=dict(reversed(TENSORS.items())),
        metadata=dict(reversed(METADATA.items())),
    ).read_bytes()
    assert one == other
    assert write(tmp_path / "one", metadata={}).read_bytes() != one


def test_views_graphs_and_parameters_are_stored_as_values(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(whole)
    tensors = {"transposed": whole.T, "column": whole[:, 1], "graph": parameter * 2, "parameter": parameter}
    found, _ = read(write(tmp_path / "file", tensors=tensors))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert not found[name].requires_grad


def test_the_file_says_who_wrote_it(tmp_path: Path) -> None:
    with safe_open(write(tmp_path / "file"), framework="pt") as file:
        body = json.loads(json.loads(file.metadata()["opnp"])["body"])
    assert body["versions"]["torch"] == torch.__version__
    assert set(body["versions"]) == {"opnp", "torch"}


def test_metadata_must_be_json(tmp_path: Path) -> None:
    for value in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises((TypeError, ValueError)):
            write(tmp_path / "file", metadata={"value": value})
    assert not list(tmp_path.iterdir())


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, *range(16, len(content), 23), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="no readable safetensors file"):
            read(path)


def test_a_longer_file(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="no readable safetensors file"):
        read(path)


def test_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    content = path.read_bytes()
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << (index % 8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read(path)


def test_a_flipped_bit_in_the_values_is_called_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"file is damaged: its content does not match its own SHA-256"):
        read(path)


def test_edited_metadata_are_called_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    content = path.read_bytes()
    assert b"fc" in content
    path.write_bytes(content.replace(b"fc", b"fd"))
    with pytest.raises(ArtifactError, match="is damaged"):
        read(path)


def foreign(path: Path) -> None:
    save_file(TENSORS, path)


def with_other_metadata(path: Path) -> None:
    save_file(TENSORS, path, metadata={"format": "pt"})


def with_text_for_metadata(path: Path) -> None:
    save_file(TENSORS, path, metadata={"opnp": "no JSON"})


def with_a_list_for_metadata(path: Path) -> None:
    save_file(TENSORS, path, metadata={"opnp": "[1, 2]"})


def with_half_the_metadata(path: Path) -> None:
    save_file(TENSORS, path, metadata={"opnp": json.dumps({"body": "{}", "sha256": ""})})


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung"))))


def saved_by_torch(path: Path) -> None:
    torch.save(TENSORS, path)


def text(path: Path) -> None:
    path.write_text("features,labels\n1,2\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "not one that opnp wrote"),
        (with_other_metadata, "not one that opnp wrote"),
        (with_text_for_metadata, "metadata that cannot be read"),
        (with_a_list_for_metadata, "metadata that cannot be read"),
        (with_half_the_metadata, "metadata that cannot be read"),
        (pickled, "no readable safetensors file"),
        (saved_by_torch, "no readable safetensors file"),
        (text, "no readable safetensors file"),
    ],
)
def test_files_of_other_origin(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "detector.safetensors"
    make(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds an opnp report, not a detector"):
        read(write(tmp_path / "file", kind="report"))


@pytest.mark.parametrize("version", [2, 4, 99])
def test_another_format_version(tmp_path: Path, version: int) -> None:
    with pytest.raises(ArtifactError, match=rf"format version {version} of an opnp detector.*reads version 3"):
        read(write(tmp_path / "file", format_version=version))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing does not exist: expected a file .*detector"):
        read(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="is a folder"):
        read(tmp_path)


def test_the_digest_covers_names_dtypes_shapes_values_and_text() -> None:
    plain = {"one": torch.zeros(4)}
    digests = [
        tensors_digest(tensors, text=text)
        for tensors, text in [
            (plain, ""),
            (plain, "text"),
            ({"two": torch.zeros(4)}, ""),
            ({"one": torch.zeros(4, dtype=torch.int32)}, ""),
            ({"one": torch.zeros(2, 2)}, ""),
            ({"one": torch.zeros(4, 1)}, ""),
            ({"one": torch.tensor([0.0, 0.0, 0.0, -0.0])}, ""),
            ({"one": torch.zeros(4), "two": torch.zeros(0)}, ""),
            ({}, ""),
        ]
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_the_digest_is_one_of_values_not_of_memory() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    assert tensors_digest({"one": whole.T}) == tensors_digest({"one": whole.T.contiguous()})
    assert tensors_digest({"one": whole, "two": whole}) == tensors_digest({"two": whole, "one": whole})
    assert tensors_digest({"one": whole, "two": None}) == tensors_digest({"one": whole})
    assert tensors_digest({"one": torch.nn.Parameter(whole)}) == tensors_digest({"one": whole})
    scalar = torch.tensor(3.5, dtype=torch.bfloat16)
    assert tensors_digest({"one": scalar}) == tensors_digest({"one": scalar.clone()})

"""Artifacts: the same bytes twice, no silent damage, no half-written file."""

import errno
import json
import os
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
WHOLE = torch.arange(12.0).reshape(3, 4)


def write(path: Path, **options: Any) -> Path:
    arguments = {"kind": "detector", "format_version": 3, "tensors": TENSORS, "metadata": METADATA, **options}
    write_artifact(path, **arguments)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    return read_artifact(path, kind="detector", format_version=3)


@pytest.mark.parametrize(
    "tensors",
    [
        *(
            {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
            for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8)
        ),
        {"transposed": WHOLE.T, "column": WHOLE[:, 1]},
        {"graph": torch.nn.Parameter(WHOLE) * 2, "parameter": torch.nn.Parameter(WHOLE)},
    ],
)
def test_round_trip(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    found, metadata = read(write(tmp_path / "file", tensors=tensors))
    assert metadata == METADATA
    assert not any(tensor.requires_grad for tensor in found.values())
    torch.testing.assert_close(found, {name: each.detach() for name, each in tensors.items()}, rtol=0, atol=0)


def test_the_same_content_gives_the_same_bytes_and_says_who_wrote_it(tmp_path: Path) -> None:
    turned = {"tensors": dict(reversed(TENSORS.items())), "metadata": dict(reversed(METADATA.items()))}
    one = write(tmp_path / "one").read_bytes()
    assert one == write(tmp_path / "other", **turned).read_bytes()
    assert one != write(tmp_path / "other", metadata={}).read_bytes()
    with safe_open(tmp_path / "one", framework="pt") as file:
        body = json.loads(json.loads(file.metadata()["opnp"])["body"])
    assert set(body["versions"]) == {"opnp", "torch"}


def test_what_is_no_json_is_not_written_and_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    content = write(tmp_path / "file").read_bytes()
    for value in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises((TypeError, ValueError)):
            write(tmp_path / "file", metadata={"value": value})
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "file", metadata={})
    assert (tmp_path / "file").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_another_length(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    content = path.read_bytes()
    for other in (content + b"\0", *(content[:length] for length in (0, 1, 7, 8, 9, *range(16, len(content), 23)))):
        path.write_bytes(other)
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


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def stored(**metadata: str) -> Callable[[Path], None]:
    """Return what writes the tensors with these metadata."""
    return lambda path: save_file(TENSORS, path, metadata=metadata or None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (stored(), "holds no opnp metadata"),
        (stored(format="pt"), "holds no opnp metadata"),
        (stored(opnp="no JSON"), "metadata that cannot be read"),
        (stored(opnp="[1, 2]"), "metadata that cannot be read"),
        (stored(opnp='{"body": "{}", "sha256": ""}'), "metadata that cannot be read"),
        (lambda path: path.write_bytes(write(path).read_bytes().replace(b"fc", b"fd")), "is damaged"),
        (lambda path: path.write_bytes(pickle.dumps(Trap(path.with_name("sprung")))), "no readable safetensors file"),
        (lambda path: torch.save(TENSORS, path), "no readable safetensors file"),
        (lambda path: write(path, kind="report"), "holds an opnp report, not a detector"),
        (lambda path: write(path, format_version=2), "format version 2 of an opnp detector.*reads version 3"),
        (lambda path: write(path, format_version=99), "format version 99 of an opnp detector.*reads version 3"),
    ],
)
def test_files_of_other_origin(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "detector.safetensors")
    with pytest.raises(ArtifactError, match=rf"detector\.safetensors .*{message}"):
        read(tmp_path / "detector.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_places_without_a_file_and_names_that_safetensors_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing does not exist: expected a file .*detector"):
        read(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(ArtifactError, match="is not valid UTF-8"):
        read(write(tmp_path / os.fsdecode(b"\xff\xfe")))


def test_the_digest_covers_names_dtypes_shapes_values_and_text() -> None:
    zeros = torch.zeros(4)
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"one": zeros}, ""),
        ({"one": zeros}, "text"),
        ({"two": zeros}, ""),
        ({"one": zeros.int()}, ""),
        ({"one": zeros.reshape(2, 2)}, ""),
        ({"one": torch.tensor([0.0, 0.0, 0.0, -0.0])}, ""),
        ({"one": zeros, "two": zeros[:0]}, ""),
        ({}, ""),
    ]
    digests = {tensors_digest(tensors, text=text) for tensors, text in cases}
    assert len(digests) == len(cases)
    assert {len(digest) for digest in digests} == {64}


def test_the_digest_is_one_of_values_not_of_memory() -> None:
    assert tensors_digest({"one": WHOLE.T}) == tensors_digest({"one": WHOLE.T.contiguous()})
    assert tensors_digest({"one": WHOLE, "two": WHOLE}) == tensors_digest({"two": WHOLE, "one": WHOLE})
    assert tensors_digest({"one": torch.nn.Parameter(WHOLE), "two": None}) == tensors_digest({"one": WHOLE})
    scalar = torch.tensor(3.5, dtype=torch.bfloat16)
    assert tensors_digest({"one": scalar}) == tensors_digest({"one": scalar.clone()})

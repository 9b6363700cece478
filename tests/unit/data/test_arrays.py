"""Images as one array: mapped, not copied; never unpickled."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from opnp.data import open_inputs
from opnp.data.arrays import ImageArrays
from opnp.errors import DataFileError, EmptyDataError, MissingFileError
from tests.unit.data.image_files import PLAIN, inputs_of, pixels, scaled

COLOURS, GREY = pixels(5).numpy(), pixels(5, is_grey=True).numpy()
LABELS = np.array([3, 0, 2, 1, 3], dtype=np.int16)


def write(path: Path, **arrays: Any) -> Path:
    """Write arrays in the format that the ending names; of a .npy file `images` alone."""
    match path.suffix:
        case ".npy":
            np.save(path, arrays["images"])
        case ".npz":
            np.savez_compressed(path, **arrays)
        case _:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("images", [COLOURS, GREY], ids=["colours", "grey"])
@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_every_format_gives_the_images(tmp_path: Path, ending: str, images: Any) -> None:
    expected = scaled(torch.from_numpy(images))
    for labels in (None, LABELS, LABELS.astype(np.uint8)):
        if ending == "npy" and labels is not None:
            continue
        arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
        found = open_inputs(write(tmp_path / f"some.{ending}", **arrays), PLAIN)
        assert torch.equal(inputs_of(found), expected)
        assert found.source.labels == (None if labels is None else (3, 0, 2, 1, 3))
        assert found.source.class_names is None
        assert list(found.names) == ["0", "1", "2", "3", "4"]
    digest = found.source.digest()
    assert open_inputs(write(tmp_path / f"some.{ending}", images=images[::-1]), PLAIN).source.digest() != digest


def test_a_plain_array_stays_on_disk_and_is_not_sent_to_workers(tmp_path: Path) -> None:
    source = ImageArrays.from_path(write(tmp_path / "large.npy", images=np.zeros((1000, 32, 32, 3), dtype=np.uint8)))
    assert isinstance(source.pixels, np.memmap)
    content = pickle.dumps(source)
    assert len(content) < 1000
    assert len(pickle.loads(content)) == 1000  # noqa: S301  # what was just written
    write(tmp_path / "some.npz", images=COLOURS, labels=np.zeros(3))
    unlabelled = ImageArrays.from_path(tmp_path / "some.npz", is_labelled=False)
    assert pickle.loads(pickle.dumps(unlabelled)).labels is None  # noqa: S301  # as above


class Trap:
    """Something that is told when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"pixels": COLOURS}, DataFileError, "must hold `images`, but it holds pixels"),
        ({"images": COLOURS.astype(np.float32)}, DataFileError, "`images` must be uint8 of shape.*got .*float32"),
        ({"images": COLOURS.transpose(0, 3, 1, 2)}, DataFileError, r"of shape \(5, 3, 8, 8\)"),
        ({"images": COLOURS[0, 0]}, DataFileError, r"of shape \(8, 3\)"),
        ({"images": COLOURS[:0]}, EmptyDataError, r"`images` has no pixels, got shape \(0, 8, 8, 3\)"),
        ({"images": COLOURS[0]}, DataFileError, r"\(8, 8, 3\) is one image in colours, not 8 grey.*`images\[None\]`"),
        ({"images": COLOURS, "labels": LABELS[:4]}, DataFileError, r"`labels` must be integers of shape \(5,\)"),
        ({"images": COLOURS, "labels": np.zeros(5)}, DataFileError, "got .*float64 of shape"),
        ({"images": COLOURS, "labels": LABELS > 0}, DataFileError, "got .*bool of shape"),
        (
            {"images": COLOURS, "labels": np.full(5, 2**63, np.uint64)},
            DataFileError,
            r"numbers of classes, below 2\^63",
        ),
    ],
)
def test_arrays_of_other_content(tmp_path: Path, ending: str, arrays: Any, error: Any, message: str) -> None:
    path = write(tmp_path / f"some.{ending}", **arrays)
    with pytest.raises(error, match=rf"some\.{ending}.*{message}"):
        open_inputs(path, PLAIN)
    if "labels" in arrays:
        assert len(open_inputs(path, PLAIN, is_labelled=False)) == 5


def test_files_that_are_damaged_or_pickled_or_absent(tmp_path: Path) -> None:
    objects = np.array([Trap()], dtype=object)
    np.save(tmp_path / "trap.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "trap.npz", images=objects)
    for name in ("cut.npy", "cut.npz"):
        write(tmp_path / name, images=COLOURS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("trap.npy", "trap.npz", "cut.npy", "cut.npz", "empty.npz"):
        with pytest.raises(DataFileError, match=rf"{name} is no readable file of NumPy"):
            open_inputs(tmp_path / name, PLAIN)
    with pytest.raises(MissingFileError, match=r"absent\.npy does not exist: expected a file with images"):
        ImageArrays.from_path(tmp_path / "absent.npy")

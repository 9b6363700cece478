"""Images in files of NumPy: mapped, not copied; never unpickled."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opnp.data import open_inputs
from opnp.data.arrays import ImageArrays
from opnp.errors import DataFileError, EmptyDataError, MissingFileError
from tests.unit.data.image_files import PLAIN, pixels

COLOURS, GREY = pixels(5).numpy(), pixels(5, is_grey=True).numpy()


@pytest.mark.parametrize("images", [COLOURS, GREY], ids=["colours", "grey"])
def test_both_forms_give_the_images(tmp_path: Path, images: Any) -> None:
    np.save(tmp_path / "plain.npy", images)
    np.savez_compressed(tmp_path / "labelled.npz", images=images, labels=np.array([3, 0, 2, 1, 3], dtype=np.uint8))
    plain, labelled = (open_inputs(tmp_path / name, PLAIN) for name in ("plain.npy", "labelled.npz"))
    expected = torch.from_numpy(images).float() / 255
    expected = expected[:, None].expand(-1, 3, -1, -1) if images.ndim == 3 else expected.permute(0, 3, 1, 2)
    (only,), ((inputs, labels),) = plain.batches(9), labelled.batches(9)
    assert torch.equal(only, expected)
    assert torch.equal(inputs, expected)
    assert labels.tolist() == [3, 0, 2, 1, 3]
    assert plain.labels is None
    assert list(plain.names) == ["0", "1", "2", "3", "4"]
    assert plain.source.class_names is labelled.source.class_names is None


def test_a_plain_array_stays_on_disk_and_is_not_sent_to_workers(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((1000, 32, 32, 3), dtype=np.uint8))
    source = ImageArrays.from_path(tmp_path / "large.npy")
    assert isinstance(source.pixels, np.memmap)
    content = pickle.dumps(source)
    assert len(content) < 1000
    assert len(pickle.loads(content)) == 1000  # noqa: S301  # what was just written


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = []
    for images in (COLOURS, COLOURS, COLOURS[::-1]):
        np.save(tmp_path / "some.npy", images)
        digests.append(open_inputs(tmp_path / "some.npy", PLAIN).source.digest())
    assert digests[0] == digests[1] != digests[2]


class Trap:
    """Something that is told when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"pixels": COLOURS}, DataFileError, "must hold `images`, but it holds pixels"),
        ({"images": COLOURS.astype(np.float32)}, DataFileError, "`images` must be uint8 of shape.*got float32"),
        ({"images": COLOURS.transpose(0, 3, 1, 2)}, DataFileError, r"of shape \(5, 3, 8, 8\)"),
        ({"images": COLOURS[:0]}, EmptyDataError, r"`images` has no pixels, got shape \(0, 8, 8, 3\)"),
        ({"images": COLOURS, "labels": np.zeros(4, int)}, DataFileError, r"`labels` must be integers of shape \(5,\)"),
        ({"images": COLOURS, "labels": np.zeros(5)}, DataFileError, "got float64 of shape"),
        ({"images": np.array([Trap()], dtype=object)}, DataFileError, "no readable file of NumPy .*allow_pickle"),
    ],
)
def test_arrays_of_other_content(tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str) -> None:
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(error, match=message) as caught:
        open_inputs(tmp_path / "some.npz", PLAIN)
    assert "some.npz" in str(caught.value)


def test_files_that_are_damaged_or_pickled_or_absent(tmp_path: Path) -> None:
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", COLOURS)
    np.savez(tmp_path / "cut.npz", images=COLOURS)
    for name in ("cut.npy", "cut.npz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("trap.npy", "cut.npy", "cut.npz", "empty.npz"):
        with pytest.raises(DataFileError, match=rf"{name} is no readable file of NumPy"):
            open_inputs(tmp_path / name, PLAIN)
    with pytest.raises(MissingFileError, match=r"absent\.npy does not exist: expected a folder of images"):
        open_inputs(tmp_path / "absent.npy", PLAIN)
    with pytest.raises(MissingFileError, match=r"absent\.npy does not exist: expected a file with images"):
        ImageArrays.from_path(tmp_path / "absent.npy")

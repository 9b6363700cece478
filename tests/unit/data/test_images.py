"""Images from folders and safetensors files: which there are, in which order, with which labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import InputSet, open_inputs
from opnp.data.images import ImageFolder
from opnp.errors import DataFileError, EmptyDataError, MissingFileError, OptionError
from tests.unit.data.image_files import PLAIN, pixels, save_image, write_tensors, write_tree


def read(path: Path) -> InputSet:
    return open_inputs(path, PLAIN)


def inputs_of(images: InputSet) -> Tensor:
    items: list[Any] = [images[index] for index in range(len(images))]
    return torch.stack([item[0] if isinstance(item, tuple) else item for item in items])


def scaled(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


def test_numbers_as_names_are_the_classes(tmp_path: Path) -> None:
    images = read(write_tree(tmp_path, {"10": 2, "2": 1, "007": 1}))
    assert images.labels is not None
    assert images.labels.tolist() == [2, 7, 10, 10]
    assert images.labels.dtype == torch.int64
    assert images.source.class_names is None
    assert torch.equal(inputs_of(images)[0], scaled(pixels(1, seed=1))[0])


def test_other_names_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    images = read(write_tree(tmp_path, {"zebra": 1, "10": 2, "ant": 1}))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 2]
    assert images.source.class_names == ("10", "ant", "zebra")
    assert images[1][1] == 0  # type: ignore[index]  # a tuple, as there are labels
    assert torch.equal(inputs_of(images)[3], scaled(pixels(1, seed=0))[0])


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in (3, 1, 2):
        save_image(tmp_path / f"{index}.png", pixels(1, seed=index)[0])
    images = read(tmp_path)
    assert images.labels is None
    assert torch.equal(inputs_of(images), torch.cat([scaled(pixels(1, seed=index)) for index in (1, 2, 3)]))


def test_images_deep_within_a_class_belong_to_it_and_other_files_do_not_count(tmp_path: Path) -> None:
    write_tree(tmp_path, {"1": 1, "0/deep/deeper": 2, ".hidden": 1, "0/.hidden": 1})
    (tmp_path / "1" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "0" / "._000.png").write_bytes(b"no image")
    (tmp_path / "README.md").write_text("no image", encoding="utf-8")
    save_image(tmp_path / "1" / "other.JPEG", pixels(1)[0])
    images = read(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in images.source.files] == [  # type: ignore[attr-defined]  # a folder's source
        "0/deep/deeper/000.png",
        "0/deep/deeper/001.png",
        "1/000.png",
        "1/other.JPEG",
    ]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_an_empty_folder_of_a_class_would_shift_the_numbers(tmp_path: Path) -> None:
    write_tree(tmp_path / "named", {"ant": 1, "bee": 0, "cow": 1})
    with pytest.raises(EmptyDataError, match=r"bee holds no image.*remove the empty ones, or name all folders by the"):
        read(tmp_path / "named")
    images = read(write_tree(tmp_path / "numbered", {"0": 1, "1": 0, "2": 1}))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["empty", "of_empty"])
def test_no_images_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    write_tree(tmp_path / "of_empty", {"0": 0})
    with pytest.raises(EmptyDataError, match=rf"{name} holds no image: expected files ending in \.avif, .*\.webp"):
        read(tmp_path / name)


def test_images_beside_folders_of_images_are_ambiguous(tmp_path: Path) -> None:
    save_image(write_tree(tmp_path, {"0": 1}) / "loose.png", pixels(1)[0])
    with pytest.raises(
        DataFileError, match=r"holds images \(loose.png, \.\.\.\) beside folders with images \(0, \.\.\.\)"
    ):
        read(tmp_path)


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent does not exist: expected a folder of images, .*\.npz"):
        read(tmp_path / "absent")
    with pytest.raises(MissingFileError, match="absent is no folder: expected one with images"):
        ImageFolder.from_path(tmp_path / "absent")


def truncated(path: Path) -> None:
    save_image(path.with_suffix(".jpg"), pixels(1, height=64, width=64)[0])
    content = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").unlink()
    path.write_bytes(content[: len(content) // 2])


def broken_chunk(path: Path) -> None:
    save_image(path, pixels(1)[0])
    content = bytearray(path.read_bytes())
    content[12:16] = b"XXXX"
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"GIF89a"), truncated, broken_chunk],
    ids=["empty", "header alone", "truncated", "broken chunk"],
)
def test_an_unreadable_image_is_named(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    write_tree(tmp_path, {"0": 2})
    spoil(tmp_path / "0" / "0005.png")
    images = read(tmp_path)
    assert len(images) == 3
    with pytest.raises(DataFileError, match=r": 0/0005\.png cannot be read \([^/]+\): mend or remove it"):
        inputs_of(images)


def test_an_image_too_large_to_be_honest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"0": 1})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataFileError, match=r"000\.png cannot be read \(Image size"):
        inputs_of(read(tmp_path))


def test_more_than_eight_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    deep = torch.full((8, 8), 40000, dtype=torch.uint16)
    Image.fromarray(deep.numpy()).save(tmp_path / "deep.png")
    with pytest.raises(DataFileError, match=r"deep\.png cannot be read \(more than 8 bits a channel, mode I;16: store"):
        inputs_of(read(tmp_path))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK"])
def test_every_usual_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(pixels(1)[0].numpy()).convert(mode)
    ending = "jpg" if mode == "CMYK" else "png"
    if mode == "P":
        picture.info["transparency"] = bytes(range(256))
    picture.save(tmp_path / f"one.{ending}")
    with Image.open(tmp_path / f"one.{ending}") as stored:
        expected = PLAIN(stored.convert("RGBA").convert("RGB") if mode == "P" else stored.convert("RGB"))
    assert torch.equal(inputs_of(read(tmp_path))[0], expected)


@pytest.mark.parametrize("labels", [None, torch.tensor([5, 0, 3], dtype=torch.int16), torch.tensor([5, 0, 3])])
def test_a_file_of_images(tmp_path: Path, labels: Tensor | None) -> None:
    images = read(write_tensors(tmp_path / "some.safetensors", pixels(3), labels))
    assert len(images) == 3
    assert torch.equal(inputs_of(images), scaled(pixels(3)))
    if labels is None:
        assert images.labels is None
        assert isinstance(images[0], Tensor)
    else:
        assert images.labels is not None
        assert images.labels.tolist() == [5, 0, 3]
        assert images[0][1] == 5  # type: ignore[index]  # a tuple, as there are labels


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"features": torch.ones(2, 2)}, DataFileError, "must hold `images`, but it holds features"),
        ({"images": torch.ones(2, 8, 8, 3)}, DataFileError, "`images` must be uint8 of shape.*got torch.float32"),
        ({"images": pixels(2).permute(0, 3, 1, 2).contiguous()}, DataFileError, r"of shape \(2, 3, 8, 8\)"),
        ({"images": pixels(1)[0, 0]}, DataFileError, r"of shape \(8, 3\)"),
        ({"images": pixels(1)[:0]}, EmptyDataError, r"`images` has no pixels, got shape \(0, 8, 8, 3\)"),
        (
            {"images": pixels(2), "labels": torch.zeros(3, dtype=torch.int64)},
            DataFileError,
            r"integers of shape \(2,\)",
        ),
        ({"images": pixels(2), "labels": torch.zeros(2)}, DataFileError, "got torch.float32 of shape"),
        ({"images": pixels(2), "labels": torch.zeros(2, dtype=torch.bool)}, DataFileError, "got torch.bool"),
    ],
)
def test_files_of_other_content(
    tmp_path: Path, tensors: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    save_file(tensors, tmp_path / "some.safetensors")
    with pytest.raises(error, match=message) as caught:
        read(tmp_path / "some.safetensors")
    assert "some.safetensors" in str(caught.value)


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    file = save_image(tmp_path / "one.png", pixels(1)[0])
    with pytest.raises(DataFileError, match=r"one\.png ends in '\.png': expected a folder of images, a list of files"):
        read(file)


def test_batches_keep_the_order_and_the_global_random_state(tmp_path: Path) -> None:
    images = read(write_tensors(tmp_path / "some.safetensors", pixels(7), torch.arange(7)))
    before = torch.random.get_rng_state()
    batches = list(images.batches(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), inputs_of(images))
    with pytest.raises(OptionError, match="`batch_size` must be at least 1, got 0"):
        images.batches(0)


def test_a_loop_over_the_set_ends(tmp_path: Path) -> None:
    images = read(write_tensors(tmp_path / "some.safetensors", pixels(4)))
    assert len(list(iter(images))) == 4
    assert torch.equal(images[-1], images[3])  # type: ignore[arg-type]  # tensors, as there are no labels
    with pytest.raises(IndexError):
        images[4]


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    one = write_tree(tmp_path / "one", {"0": 2, "1": 1})
    other = write_tree(tmp_path / "other", {"1": 1, "0": 2}, seed=0)
    same = write_tree(tmp_path / "elsewhere" / "one", {"0": 2, "1": 1})
    digest = read(one).source.digest()
    assert digest == read(same).source.digest()
    assert digest != read(other).source.digest()
    (one / "0" / "000.png").rename(one / "0" / "0000.png")
    assert digest != read(one).source.digest()
    file = write_tensors(tmp_path / "some.safetensors", pixels(2))
    before = read(file).source.digest()
    assert before != read(write_tensors(file, pixels(2, seed=1))).source.digest()

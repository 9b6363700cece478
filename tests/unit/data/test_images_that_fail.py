"""Images that cannot be read, or of which no input can be made: counted with the reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from opnp.adapters.transformers_inputs import TransformersImageTransform
from opnp.data import InputSet, Preprocessing, open_inputs
from opnp.data.images import decoded_image
from opnp.errors import DataFileError, ModelRunError
from tests.unit.data.image_files import PLAIN, pixels, save_image, write_tree
from tests.unit.data.text_world import LETTERS


def test_a_single_image_in_colours_is_no_pile_of_grey_ones(tmp_path: Path) -> None:
    one = pixels(1)[0]
    np.save(tmp_path / "one.npy", one.numpy())
    save_file({"images": one}, tmp_path / "one.safetensors")
    for name in ("one.npy", "one.safetensors"):
        message = rf"{name}: `images` of shape \(8, 8, 3\) is one image in colours, not 8 grey ones: .*`images\[None\]`"
        with pytest.raises(DataFileError, match=message):
            open_inputs(tmp_path / name, PLAIN)
    np.save(tmp_path / "one.npy", one[None].numpy())
    assert len(open_inputs(tmp_path / "one.npy", PLAIN)) == 1


@pytest.mark.parametrize(
    "transform",
    [
        Preprocessing(size=8, resize=64, mean=(0.0,) * 3, std=(1.0,) * 3),
        TransformersImageTransform(CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=8)),
    ],
    ids=["own", "transformers"],
)
def test_an_image_that_would_become_huge_is_counted(
    tmp_path: Path, transform: Preprocessing | TransformersImageTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(tmp_path / "a.png", pixels(1, height=64, width=64)[0])
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    inputs = open_inputs(tmp_path, transform)
    (batch,) = inputs.batches(2)
    assert batch.shape == (1, 3, 8, 8)
    reason = "too long and thin: it would be resized to 64 x 1280000 pixels, above 1000000"
    assert inputs.unreadable == (("thin.png", reason),)


class Failing(Preprocessing):
    """Fails on images that are black."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if not np.asarray(image).any():
            raise self.error
        return super().__call__(image)

    error: Exception = ValueError("mean must have 1 element\nand more")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("mean must have 1 element\nand more"), "mean must have 1 element"),
        (OSError("broken"), "broken"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_transform_that_fails_on_an_image_counts_it(
    tmp_path: Path, error: Exception, reason: str, workers: int
) -> None:
    write_tree(tmp_path, {"0": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "0" / "black.png")
    transform = type("Once", (Failing,), {"error": error})(8, 8, (0.0,) * 3, (1.0,) * 3)
    inputs = InputSet(open_inputs(tmp_path, PLAIN).source, transform)
    assert sum(len(labels) for _, labels in inputs.batches(2, workers=workers)) == 2
    assert inputs.unreadable == (("0/black.png", reason),)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_fails_otherwise_stops_with_the_name(tmp_path: Path, workers: int) -> None:
    write_tree(tmp_path, {"0": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "0" / "black.png")
    transform = type("Once", (Failing,), {"error": TypeError("no tensor")})(8, 8, (0.0,) * 3, (1.0,) * 3)
    inputs = InputSet(open_inputs(tmp_path, PLAIN).source, transform)
    with pytest.raises(ModelRunError, match=r"failed on 0/black\.png: TypeError: no tensor$"):
        list(inputs.batches(2, workers=workers))


def test_links_to_what_is_not_there_are_counted(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"0": 1})
    (tmp_path / "tree" / "0" / "gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "tree" / "0" / "folder.png").mkdir()
    inputs = open_inputs(tmp_path / "tree", PLAIN)
    assert len(list(inputs.batches(2))) == 1
    assert inputs.unreadable == (("0/gone.png", "No such file or directory"),)
    assert len(inputs.source.digest()) == 64


def test_pictures_of_other_formats_are_read_or_counted(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(1)[0].numpy())
    picture.save(tmp_path / "a.jfif")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    if ".avif" in Image.registered_extensions():
        picture.save(tmp_path / "c.avif")
    else:  # Pillow before 11.3
        picture.save(tmp_path / "c.webp")
    inputs = open_inputs(tmp_path, PLAIN)
    assert [len(batch) for batch in inputs.batches(4)] == [2]
    assert inputs.unreadable == (("b.heic", "the Pillow that is installed reads no .heic files"),)


def test_brackets_without_end_are_one_unreadable_line(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n' + "[" * 200_000, encoding="utf-8")
    inputs = open_inputs(tmp_path / "some.jsonl", LETTERS)
    assert len(list(inputs.batches(4))) == 1
    assert inputs.unreadable == (("line 2", "no JSON: brackets within brackets too deep"),)


def test_a_field_that_is_too_long_points_to_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(f"text\n{'a' * 140_000}\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"field limit.*: longer texts are read from a \.jsonl file\."):
        open_inputs(tmp_path / "some.csv", LETTERS)


def test_a_reader_that_starts_a_program_is_never_chosen(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(DataFileError, match=r"^no image$"):
        decoded_image(path)
    with Image.open(path) as image:
        assert image.format == "EPS", "Pillow by itself would"

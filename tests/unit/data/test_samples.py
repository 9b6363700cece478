"""Preprocessing is torchvision's, pixel by pixel; labels are numbers or names, never a mixture."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, transforms

from opnp.data import Preprocessing, Transform, channel_std, open_inputs, samples
from opnp.data.samples import class_labels
from opnp.errors import DataFileError, MissingExtraError, OptionError
from tests.unit.data.image_files import PLAIN, pixels, scaled, write_tensors
from tests.unit.data.text_world import LETTERS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image(width: int, height: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(pixels(1, seed=seed, height=height, width=width)[0].numpy())


def torchvision_transform(resize: Any, size: int, interpolation: str) -> transforms.Compose:
    steps = [
        transforms.Resize(resize, interpolation=InterpolationMode(interpolation)),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    resize=st.integers(1, 60),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    is_squashed=st.booleans(),
)
def test_it_is_what_torchvision_does(
    *, width: int, height: int, size: int, resize: int, interpolation: Any, is_squashed: bool
) -> None:
    ours = Preprocessing(size, resize, MEAN, STD, interpolation=interpolation, is_squashed=is_squashed)
    picture = image(width, height)
    expected = torchvision_transform((resize, resize) if is_squashed else resize, size, interpolation)(picture)
    assert torch.equal(ours(picture), expected)


def test_what_a_transform_says_of_itself() -> None:
    transforms: list[Transform] = [PLAIN, LETTERS]
    assert all(isinstance(each, Transform) for each in transforms)
    assert [channel_std(each) for each in transforms] == [(1.0, 1.0, 1.0), None]
    facts = {"size": 4, "resize": 5, "mean": [0.5], "std": [0.25], "interpolation": "bilinear", "is_squashed": False}
    assert Preprocessing(4, 5, (0.5,), (0.25,)).facts() == facts


def test_an_image_of_the_right_size_keeps_its_pixels_in_one_channel_or_three() -> None:
    grey = pixels(1, is_grey=True)[0]
    assert torch.equal(PLAIN(image(8, 8)), scaled(pixels(1))[0])
    assert torch.equal(PLAIN(Image.fromarray(grey.numpy())), scaled(grey[None])[0])
    ours = Preprocessing(size=8, resize=8, mean=(0.25,), std=(0.5,))
    for picture in (Image.fromarray(grey.numpy()), Image.fromarray(grey.numpy()).convert("RGB")):
        assert torch.equal(ours(picture), (grey.float()[None] / 255 - 0.25) / 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "`size` must lie in 1 to 8192 pixels, got 0"),
        ({"mean": (0.5, 0.5)}, r"three values each \(red, green, blue\), or one each for grey inputs, got 2 and 3"),
        ({"std": (0.5,)}, "got 3 and 1"),
        ({"std": (0.5, 0.0, 0.5)}, "`std` must be finite and above 0"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "`mean` must be finite"),
        ({"mean": (123.7, 116.3, 103.5)}, "must be of pixels in.*Divide values of pixels in 0 to 255 by 255"),
        ({"interpolation": "sinc"}, "must be one of nearest, box, bilinear, hamming, bicubic, lanczos, got 'sinc'"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"size": 8, "resize": 8, "mean": MEAN, "std": STD} | changes
    with pytest.raises(OptionError, match=message):
        Preprocessing(**values)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tensors(tmp_path / "some.safetensors", pixels(1))
    monkeypatch.setattr(samples, "find_spec", lambda name: None if name == "PIL" else find_spec(name))
    for path in (file, tmp_path):
        with pytest.raises(MissingExtraError, match=r"Images need Pillow.*pip install 'opnp\[vision\]'"):
            open_inputs(path, PLAIN)


@pytest.mark.parametrize("label", [2**63, -(2**63), "9" * 23, "7" * 5000])
def test_numbers_of_more_than_64_bits_are_told_where_they_are_read(label: object) -> None:
    message = r"list\.csv: labels must be numbers of classes, below 2\^63, got .{1,170}$"
    with pytest.raises(DataFileError, match=message):
        class_labels([1, label], path=Path("list.csv"))
    with pytest.raises(DataFileError, match=r"got both, such as .{1,170} and 'dog'\. Where"):
        class_labels([label, "dog"], path=Path("list.csv"))


@pytest.mark.parametrize(
    ("given", "labels", "names"),
    [
        (["2.0", "0.0", " 1.".strip()], (2, 0, 1), None),
        ([2.0, 0, "1"], (2, 0, 1), None),
        ([[0, 1, 0], [1, 0, 0]], (1, 0), None),
        (["dog 2.0", "cat"], (1, 0), ("cat", "dog 2.0")),
        (["-1", -1, -1.0, "-1.0", None, ""], None, None),
        ([], None, None),
    ],
)
def test_labels_of_files(given: list[object], labels: object, names: object) -> None:
    assert class_labels(given, path=Path("list.csv")) == (labels, names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["0.5", "1"], r"integers or names of classes, got 0\.5"),
        ([0.5, 1], r"integers or names of classes, got 0\.5"),
        ([float("nan"), 1], "integers or names of classes, got nan"),
        ([True, False], "integers or names of classes, got True"),
        ([[0, 1, 1]], "multi-hot"),
        ([[0.5, 0.5], [1.0, 0.0]], "soft, a probability"),
        ([0, -5], "counted from 0, or -1 for none, got -5"),
        ([0, -1], "1 of 2 labels are missing"),
        (["nan", "2.0"], "got both"),
    ],
)
def test_labels_of_files_that_name_no_class(given: list[object], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        class_labels(given, path=Path("list.csv"))

"""Preprocessing is torchvision's, pixel by pixel."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, transforms

from opnp.data import Preprocessing, open_inputs, preprocessing
from opnp.errors import MissingExtraError, OptionError
from tests.unit.data.image_files import PLAIN, pixels, write_tensors

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


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    picture = image(8, 8)
    inputs = Preprocessing(size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)(picture)
    assert torch.equal((inputs * 255).round().to(torch.uint8), pixels(1)[0].permute(2, 0, 1))


def test_small_grey_images_become_larger_coloured_ones(tmp_path: Path) -> None:
    file = write_tensors(tmp_path / "grey.safetensors", pixels(3, height=28, width=28, is_grey=True))
    inputs = open_inputs(file, Preprocessing(size=32, resize=32, mean=(0.0,) * 3, std=(1.0,) * 3))[0]
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (3, 32, 32)
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0], inputs[2])
    assert float(inputs.max()) > 0.5


def test_one_mean_makes_grey_inputs_and_loses_nothing_of_grey_images() -> None:
    grey = pixels(1, is_grey=True)[0]
    ours = Preprocessing(size=8, resize=8, mean=(0.25,), std=(0.5,))
    for picture in (Image.fromarray(grey.numpy()), Image.fromarray(grey.numpy()).convert("RGB")):
        inputs = ours(picture)
        assert inputs.shape == (1, 8, 8)
        assert torch.equal(inputs[0], (grey.float() / 255 - 0.25) / 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "`size` must lie in 1 to 8192 pixels, got 0"),
        ({"resize": 0}, "`resize` must lie in 1 to 8192 pixels, got 0"),
        ({"mean": (0.5, 0.5)}, r"three values each \(red, green, blue\), or one each for grey inputs, got 2 and 3"),
        ({"std": (0.5,)}, "got 3 and 1"),
        ({"std": (0.5, 0.0, 0.5)}, "`std` must be finite and above 0"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "`mean` must be finite"),
        ({"mean": (123.7, 116.3, 103.5)}, "must be of pixels in.*Divide values of pixels in 0 to 255 by 255"),
        ({"std": (58.4, 57.1, 57.4)}, "Divide"),
        ({"interpolation": "sinc"}, "must be one of nearest, box, bilinear, hamming, bicubic, lanczos, got 'sinc'"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"size": 8, "resize": 8, "mean": MEAN, "std": STD} | changes
    with pytest.raises(OptionError, match=message):
        Preprocessing(**values)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tensors(tmp_path / "some.safetensors", pixels(1))
    monkeypatch.setattr(preprocessing, "find_spec", lambda name: None if name == "PIL" else find_spec(name))
    for path in (file, tmp_path):
        with pytest.raises(MissingExtraError, match=r"Images need Pillow.*pip install 'opnp\[vision\]'"):
            open_inputs(path, PLAIN)

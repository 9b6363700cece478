"""Small images on disk: folders of files, and safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import InputSet, Preprocessing

__all__ = ["PLAIN", "inputs_of", "pixels", "save_image", "scaled", "write_tensors", "write_tree"]

PLAIN = Preprocessing(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Scales to [0, 1], and nothing else, for images of 8 x 8."""


def pixels(count: int, *, seed: int = 0, height: int = 8, width: int = 8, is_grey: bool = False) -> Tensor:
    """Return random images, uint8."""
    shape = (count, height, width) if is_grey else (count, height, width, 3)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def scaled(images: Tensor) -> Tensor:
    """Return the inputs that `PLAIN` makes of images."""
    images = images if images.ndim == 4 else images[..., None].expand(-1, -1, -1, 3)
    return images.permute(0, 3, 1, 2).float() / 255


def inputs_of(images: InputSet) -> Tensor:
    """Return all inputs of a set, without labels."""
    return torch.cat([batch[0] if isinstance(batch, tuple) else batch for batch in images.batches(2)])


def save_image(path: Path, image: Tensor) -> Path:
    """Write one image, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.numpy()).save(path)
    return path


def write_tree(folder: Path, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Write so many random images to each subfolder, and return the folder."""
    for offset, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(pixels(count, seed=seed + offset)):
            save_image(folder / name / f"{index:03d}.png", image)
    return folder


def write_tensors(path: Path, images: Tensor, labels: Tensor | None = None) -> Path:
    """Write images as one tensor, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": images} if labels is None else {"images": images, "labels": labels}, path)
    return path

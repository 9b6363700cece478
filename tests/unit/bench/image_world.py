"""A tiny random model and tiny random images that it tells apart well enough for a benchmark."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnp.bench import CacheReport, cache_features
from opnp.data import InputSet, Preprocessing, open_inputs
from tests.unit.data.image_files import save_image, write_tensors

__all__ = [
    "CLASSES",
    "INPUTS",
    "OPTIONS",
    "TREE",
    "cached",
    "class_images",
    "image_sets",
    "tiny_model",
    "write_broken_tree",
    "write_images",
    "write_module",
]

CLASSES = 4
INPUTS = Preprocessing(size=8, resize=8, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))
TREE = (0, 4, 1, 5, 2, 6, 3)
"""The images of `write_broken_tree` in the order of their paths."""

OPTIONS = ("--image-size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.2,0.1")
"""`INPUTS` on the command line."""

_MODULE = """
from tests.unit.bench.image_world import tiny_model


def net():
    return tiny_model()


def other():
    return tiny_model(seed=1)


def number():
    return 3


def broken():
    raise RuntimeError("out of order")
"""


def tiny_model(*, seed: int = 0) -> nn.Sequential:
    """Return a CNN for images of 8 x 8 with random weights of this seed, in training mode, with batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(48, CLASSES),
        )
    return model.train()


def class_images(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return images in one colour a class, with noise, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    colours = torch.tensor([[230, 40, 40], [40, 230, 40], [40, 40, 230], [200, 200, 60]])
    noise = torch.randint(-40, 41, (rows, 8, 8, 3), generator=generator)
    return (colours[labels][:, None, None] + noise).clamp(0, 255).to(torch.uint8), labels


def write_images(folder: Path, *, rows: int = 120) -> Path:
    """Write train, test and two OOD sets, each a safetensors file, and return the folder."""
    for seed, name in enumerate(("train", "test")):
        write_tensors(folder / f"{name}.safetensors", *class_images(rows, seed=seed))
    noise = torch.randint(256, (60, 8, 8, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    write_tensors(folder / "noise.safetensors", noise)
    write_tensors(folder / "grey.safetensors", noise[:50, :, :, 0].contiguous(), torch.full((50,), 99))
    return folder


def write_broken_tree(folder: Path, broken: Collection[int]) -> Path:
    """Write images 0 to 6 to the folders of their classes, the broken ones as something else, and return the folder."""
    for row, image in enumerate(class_images(len(TREE), seed=0)[0]):
        file = save_image(folder / str(row % CLASSES) / f"{row}.png", image)
        if row in broken:
            file.write_bytes(b"no image")
    return folder


def image_sets(folder: Path) -> dict[str, InputSet]:
    """Return the sets that `write_images` writes, by the names that a benchmark gives them."""
    files = {"train": "train", "test": "test", "ood_noise": "noise", "ood_grey": "grey"}
    return {name: open_inputs(folder / f"{file}.safetensors", INPUTS) for name, file in files.items()}


def cached(model: nn.Module, sets: Mapping[str, InputSet], out: Path, **options: Any) -> CacheReport:
    """Return what caching these sets did."""
    chosen: dict[str, Any] = {"name": "tiny:net", "batch_size": 32} | options
    return cache_features(model, sets, out, **chosen)


def write_module(folder: Path, name: str = "tinynets") -> Path:
    """Write a module with callables that return models, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(_MODULE, encoding="utf-8")
    return folder

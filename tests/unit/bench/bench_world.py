"""Folders of cached features, small enough to check by slow and obvious means."""

from pathlib import Path

import torch
from torch import Tensor

from opnp.bench.features import ModelData, read_feature_folder
from opnp.data import write_features, write_head

__all__ = ["CLASSES", "FEATURES", "read_world", "world_features", "world_weight", "write_world"]

CLASSES, FEATURES = 4, 16


def world_weight() -> Tensor:
    """Return the head's weight, shape ``(CLASSES, FEATURES)``: logits of known samples are of the order of 5."""
    return torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(100)) / 10


def world_features(rows: int, *, seed: int, strength: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return features that lean towards the weights of their class, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    noise = torch.randn(rows, FEATURES, generator=generator)
    return (noise + 10 * strength * world_weight()[labels]).relu(), labels


def write_world(folder: Path, *, rows: int = 240, has_labels: bool = True, has_bias: bool = True) -> Path:
    """Write head, train, test, a near and a far OOD set to `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_head(folder / "head.safetensors", world_weight(), bias=torch.linspace(-1, 1, CLASSES) if has_bias else None)
    for seed, name in enumerate(("train", "test")):
        features, labels = world_features(rows, seed=seed)
        # Stored as published features are: half precision, short labels.
        write_features(
            folder / f"{name}.safetensors", features.half(), labels=labels.to(torch.int16) if has_labels else None
        )
    write_features(folder / "ood_cifar100.safetensors", world_features(120, seed=2, strength=1.0)[0].half())
    write_features(folder / "ood_noise.safetensors", world_features(90, seed=3, strength=0.0)[0].half())
    return folder


def read_world(folder: Path, *, rows: int = 240, has_labels: bool = True, has_bias: bool = True) -> ModelData:
    """Return what `write_world` writes, as it is read."""
    return read_feature_folder(write_world(folder, rows=rows, has_labels=has_labels, has_bias=has_bias))

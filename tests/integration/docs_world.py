"""What the pages of the documentation take for granted: small models, weights, images, texts, features and results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opnp.data import write_features, write_head

__all__ = ["CLASSES", "WORLDS"]

CLASSES, FEATURES, SIDE = 10, 24, 32

_NET = """\
from torch import nn


def classifier():
    body = (nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(64, 10))
"""


def images(folder: Path) -> None:
    """Write ``net.py`` with ``weights.pt``, and folders of images: train and val by class, new without classes."""
    from PIL import Image

    (folder / "net.py").write_text(_NET, encoding="utf-8")
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(_NET, scope)  # noqa: S102  # the text above
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(scope["classifier"]().state_dict(), folder / "weights.pt")
    random = np.random.default_rng(0)
    for part, count in {"train": 12, "val": 3, "new": 1}.items():
        for kind in range(CLASSES):
            place = folder / "images" / part / ("" if part == "new" else f"kind_{kind}")
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.normal(25 * kind, 20, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{kind}_{number}.png")


def bert(folder: Path) -> None:
    """Write ``my-bert``, a text classifier of transformers, and texts for it."""
    from tests.unit.adapters.hub_folders import TEXT_CLASSES, write_bert

    write_bert(folder / "my-bert")
    words = ("a", "film", "good", "bad", "very", "not", "is", "this")
    random = np.random.default_rng(0)
    for name, count in {"train": 60, "val": 40, "new": 5}.items():
        lines = [
            json.dumps({"text": " ".join(random.choice(words, 4)), "label": number % TEXT_CLASSES})
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def features(folder: Path) -> None:
    """Write features of ten classes, their head and one OOD set, as `opnp cache` names them and beside that by use."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, FEATURES, generator=generator)

    def drawn(rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(rows) % CLASSES
        return (centres[labels] + 0.15 * torch.randn(rows, FEATURES, generator=generator)).clamp_min(0), labels

    for name, rows in {"train": 600, "validation": 200, "test": 200}.items():
        found, labels = drawn(rows)
        write_features(folder / f"{name}.safetensors", found, labels=labels)
    outside = 0.8 * torch.rand(200, FEATURES, generator=generator)
    write_features(folder / "ood.safetensors", outside)
    write_head(folder / "head.safetensors", 6 * (centres - centres.mean(0)), bias=-3 * (centres**2).sum(1))


def results(folder: Path) -> None:
    """Write a folder of features as `opnp cache` leaves it."""
    inner = folder / "features"
    inner.mkdir()
    features(inner)
    (inner / "ood.safetensors").rename(inner / "ood_uniform.safetensors")
    (inner / "validation.safetensors").unlink()


def demo(folder: Path) -> None:
    """Write what `opnp demo` leaves, of other data."""
    inner = folder / "opnp-demo"
    inner.mkdir()
    features(inner)
    (inner / "ood.safetensors").rename(inner / "ood_far.safetensors")


WORLDS: dict[str, Callable[[Path], None]] = {
    "images": images,
    "bert": bert,
    "features": features,
    "results": results,
    "demo": demo,
}
"""By the name that a page gives in a comment: what writes it into a folder."""

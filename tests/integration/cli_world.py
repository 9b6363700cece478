"""A folder with what the command line reads: features, images, texts, and models that work or do not."""

import json
from pathlib import Path

import torch

from opnp.data import write_features, write_head
from tests.unit.adapters.hub_folders import WORDS
from tests.unit.bench.image_world import OPTIONS, class_images, write_module
from tests.unit.data.image_files import write_tensors

__all__ = ["FEATURES", "MODULES", "TINY", "line", "write_cached", "write_texts", "write_world"]

MODULES = ("exitnets", "oddnets", "tinynets")
TINY = f"--model tinynets:net {' '.join(OPTIONS)}"
FEATURES = "--features f/train.safetensors --head f/head.safetensors"

_SHORT = {
    "FEATURES": FEATURES,
    "FIT": "fit --out d.st",
    "HEAD": "--head f/head.safetensors",
    "OPTIONS": " ".join(OPTIONS),
    "SCORE": "score --out s.csv",
    "TINY": TINY,
    "TRAIN": "--data train.safetensors",
}

_MODULE = """
import sys
import torch
from torch import nn
from tests.unit.bench.image_world import tiny_model

RUNS = []


def made():
    raise RuntimeError("the model was made")


def leaving():
    sys.exit(0)


class Late(nn.Module):
    is_left = False

    def __init__(self):
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs):
        RUNS.append("run")
        if self.is_left:
            sys.exit(0)
        return self.inner(inputs)


class Leaving(Late):
    is_left = True


class Noisy(Late):
    def forward(self, inputs):
        return self.inner(inputs + torch.randn_like(inputs))


def half():
    return tiny_model().half()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU())
        self.first, self.second = nn.Linear(24, 4), nn.Linear(24, 4)

    def forward(self, inputs):
        features = self.body(inputs)
        return self.second(features), self.first(features)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        raise KeyError("lost")
"""


def line(text: str) -> list[str]:
    """Return the words of a command line in which some capital words stand for what is said often."""
    for name, value in _SHORT.items():
        text = text.replace(name, value)
    return text.split()


def write_cached(folder: Path) -> Path:
    """Write features and a head of 5 classes and 32 features into a folder, and return it."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(exist_ok=True)
    for name, rows in {"train": 400, "validation": 200, "test": 50}.items():
        features = torch.rand(rows, 32, generator=generator)
        write_features(folder / f"{name}.safetensors", features, labels=torch.arange(rows) % 5)
    weight, bias = torch.randn(5, 32, generator=generator), torch.randn(5, generator=generator)
    write_head(folder / "head.safetensors", weight, bias=bias)
    write_head(folder / "head_without_bias.safetensors", weight)
    return folder


def write_world(folder: Path) -> Path:
    """Write modules of models, images and texts into a folder, and return it."""
    write_module(folder)
    (folder / "oddnets.py").write_text(_MODULE, encoding="utf-8")
    (folder / "exitnets.py").write_text("raise SystemExit", encoding="utf-8")
    for seed, (name, rows) in enumerate({"train": 60, "validation": 24, "test": 10, "few": 8}.items()):
        write_tensors(folder / f"{name}.safetensors", *class_images(rows, seed=seed))
        write_texts(folder / f"{name}.jsonl", rows, seed=seed)
    return folder


def write_texts(path: Path, rows: int, *, seed: int, broken: int = 0, classes: int = 0) -> None:
    """Write texts of random words into a file, one a line, after lines without; labels if there are classes."""
    generator = torch.Generator().manual_seed(seed)
    lines = ["{}"] * broken
    for row in range(rows):
        words = torch.randint(5, len(WORDS), (int(torch.randint(1, 20, (), generator=generator)),), generator=generator)
        label = {"label": row % classes} if classes else {}
        lines.append(json.dumps({"text": " ".join(WORDS[word] for word in words.tolist()), **label}))
    path.write_text("\n".join(lines), encoding="utf-8")

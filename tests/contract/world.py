"""The world of the contract: a small trained classifier with batch norm and dropout, data it knows, data it does not.

Images are 8 x 8 grey; the class is the bright quadrant. Images without a bright quadrant are out of distribution.
"""

import copy
from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn

__all__ = ["HEAD", "batches", "classifier", "features_of", "held_out", "outside", "training"]

HEAD = "head"
_CLASSES = 4
_FEATURES = 16


def _noise(samples: int, *, seed: int) -> Tensor:
    return 0.3 * torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def _images(samples: int, *, seed: int) -> tuple[Tensor, Tensor]:
    images = _noise(samples, seed=seed)
    labels = torch.arange(samples) % _CLASSES
    for quadrant in range(_CLASSES):
        rows, columns = 4 * (quadrant // 2), 4 * (quadrant % 2)
        images[labels == quadrant, :, rows : rows + 4, columns : columns + 4] += 0.7
    return images, labels


@cache
def _trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(
                convolution=nn.Conv2d(1, 8, 3, padding=1),
                norm=nn.BatchNorm2d(8),
                activation=nn.ReLU(inplace=True),
                pool=nn.AdaptiveAvgPool2d(2),
                flatten=nn.Flatten(),
                hidden=nn.Linear(32, _FEATURES),
                hidden_norm=nn.BatchNorm1d(_FEATURES),
                hidden_activation=nn.ReLU(inplace=True),
                dropout=nn.Dropout(0.2),
                head=nn.Linear(_FEATURES, _CLASSES),
            ),
        )
        images, labels = _images(256, seed=1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def classifier() -> nn.Module:
    """Return a new copy of the trained classifier, in eval mode."""
    return copy.deepcopy(_trained())


@cache
def training() -> Tensor:
    """Return 160 training images."""
    return _images(160, seed=2)[0]


@cache
def held_out() -> Tensor:
    """Return 79 more images of the same kind: at keep=0.9 a p-value of 8/80 is flagged, as 1 - 0.9 in floats is not."""
    return _images(79, seed=3)[0]


@cache
def outside() -> Tensor:
    """Return 80 images of noise alone."""
    return _noise(80, seed=4)


def batches(inputs: Tensor, size: int = 32) -> list[Tensor]:
    """Return the inputs as a list of batches: a loader that draws no random numbers."""
    return list(inputs.split(size))


def features_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the head takes in, by running the other layers one by one."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, layer in model.named_children():
            if name != HEAD:
                inputs = layer(inputs.clone())
    return inputs

"""The world of the contract: a small trained classifier with batch norm and dropout, data it knows, data it does not.

Images are 8 x 8 grey; the class is the bright quadrant. Images without a bright quadrant are out of distribution. All
values are whole numbers of 255ths, as those in files are.
"""

import copy
from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn

__all__ = [
    "HEAD",
    "batches",
    "body_of",
    "class_labels",
    "classifier",
    "features",
    "fresh",
    "head_of",
    "known",
    "lived_in",
    "strange",
]

HEAD = "head"
_CLASSES = 4
_FEATURES = 16


def _noise(samples: int, *, seed: int) -> Tensor:
    return 0.3 * torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def _images(samples: int, *, seed: int) -> Tensor:
    images, labels = _noise(samples, seed=seed), torch.arange(samples) % _CLASSES
    for quadrant in range(_CLASSES):
        rows, columns = 4 * (quadrant // 2), 4 * (quadrant % 2)
        images[labels == quadrant, :, rows : rows + 4, columns : columns + 4] += 0.7
    return images


def _rounded(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8).float() / 255


@cache
def known() -> Tensor:
    """Return 160 training images."""
    return _rounded(_images(160, seed=2))


@cache
def fresh() -> Tensor:
    """Return 79 images to calibrate on: at keep=0.9 a p-value of 8/80 is flagged, as 1 - 0.9 in floats is not."""
    return _rounded(_images(79, seed=3))


@cache
def strange() -> Tensor:
    """Return 80 images of noise alone."""
    return _rounded(_noise(80, seed=4))


def class_labels(inputs: Tensor) -> Tensor:
    """Return the classes of images that are known."""
    return torch.arange(len(inputs)) % _CLASSES


def batches(inputs: Tensor, size: int = 32) -> list[Tensor]:
    """Return the inputs as a list of batches: a loader that draws no random numbers."""
    return list(inputs.split(size))


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
        images = _images(256, seed=1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), class_labels(images)).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def classifier() -> nn.Module:
    """Return a new copy of the trained classifier, in eval mode."""
    return copy.deepcopy(_trained())


def lived_in(model: nn.Module) -> nn.Module:
    """Return the model in mixed modes, partly frozen, with gradients and the owner's hooks."""
    model.train()
    for name, module in model.named_modules():
        if name in ("norm", "hidden", "hidden_activation"):
            module.eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
        if number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    head = model.get_submodule(HEAD)
    head.register_forward_pre_hook(lambda _module, _args: None)
    head.register_forward_hook(lambda _module, _args, _kwargs, _output: None, with_kwargs=True)
    model.register_buffer("counter", torch.zeros(1), persistent=False)
    return model


def head_of(model: nn.Module) -> nn.Linear:
    """Return the head."""
    head = model.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)
    return head


def body_of(model: nn.Module) -> nn.Sequential:
    """Return all layers but the head, which stay those of the model."""
    return nn.Sequential(*(layer for name, layer in model.named_children() if name != HEAD))


@cache
def _quiet() -> nn.Module:
    return body_of(classifier())


def features(inputs: Tensor) -> Tensor:
    """Return what the head takes in for images, shape ``(batch, features)``."""
    with torch.no_grad():
        return torch.cat([_quiet()(batch.clone()) for batch in batches(inputs, 256)])

"""Plain classifiers of a few layers, and one of torchvision's that needs to be cut down."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["CLASSES", "INPUTS", "Answering", "mlp", "network_in_network", "parametrized_mlp", "small_cnn", "vgg"]

CLASSES, INPUTS = 5, 6
_TV: Any = torchvision.models  # typed in parts only


class Answering(nn.Module):
    """A body and a head, with something done to the head's output."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.fc, self.after = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU()), nn.Linear(16, CLASSES), after

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.fc(self.body(inputs)))


def mlp() -> nn.Sequential:
    """Return linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def parametrized_mlp() -> nn.Sequential:
    """Return an MLP whose head's weight is computed from two parameters whenever it is read."""
    model = mlp()
    weight_norm(model[2])
    return model


def small_cnn() -> nn.Sequential:
    """Return a convolution, pooling and a linear layer."""
    body = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, CLASSES))


def network_in_network() -> nn.Sequential:
    """Return convolutions of which the last, 1x1, makes the logits at every position, which are then averaged."""
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    return nn.Sequential(*body, nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg() -> nn.Module:
    """Return a VGG without the hundred million weights of its first linear layer."""
    layers = _TV.vgg.make_layers([16, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):
        model: nn.Module = _TV.VGG(layers, num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(
        *(nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout()),
        nn.Linear(64, CLASSES),
    )
    return model

"""DenseNet-BC-100 for CIFAR: growth 12, three blocks of 16 layers, reduction one half, 342 features.

Its names of weights are those of the checkpoints that the authors of DICE published, so that
``--model opnp.bench.densenet:cifar10 --weights checkpoint_100.pth.tar`` takes them as they are.

References:
    Huang et al., CVPR 2017; Sun and Li, ECCV 2022.

"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

__all__ = ["DenseNet", "cifar10", "cifar100"]

_GROWTH = 12
_LAYERS = 16


class _Layer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * _GROWTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * _GROWTH)
        self.conv2 = nn.Conv2d(4 * _GROWTH, _GROWTH, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.conv1(relu(self.bn1(inputs)))
        return torch.cat([inputs, self.conv2(relu(self.bn2(inner)))], 1)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(_Layer(channels + _GROWTH * index) for index in range(_LAYERS)))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return avg_pool2d(self.conv1(relu(self.bn1(inputs))), 2)


class DenseNet(nn.Module):
    """Images, shape ``(batch, 3, 32, 32)``, normalised, to logits.

    Args:
        classes: Rows of the head.

    Example:
        >>> DenseNet(10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    """

    def __init__(self, classes: int) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.block1 = _Block(24)
        self.trans1 = _Transition(216)
        self.block2 = _Block(108)
        self.trans2 = _Transition(300)
        self.block3 = _Block(150)
        self.bn1 = nn.BatchNorm2d(342)
        self.fc = nn.Linear(342, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer takes in, shape ``(batch, 342)``."""
        inner = self.trans1(self.block1(self.conv1(images)))
        inner = self.block3(self.trans2(self.block2(inner)))
        return avg_pool2d(relu(self.bn1(inner)), 8).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``."""
        logits: Tensor = self.fc(self.features(images))
        return logits


def cifar10() -> DenseNet:
    """Return the network for CIFAR-10, with random weights."""
    return DenseNet(10)


def cifar100() -> DenseNet:
    """Return the network for CIFAR-100, with random weights."""
    return DenseNet(100)

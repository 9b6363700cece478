"""Models to measure with: random weights, real shapes."""

import torch
from torch import Tensor, nn

__all__ = ["cifar_densenet", "large_head"]


class _Layer(nn.Module):
    """Pre-activation bottleneck of a DenseNet-BC."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps with `growth` further ones."""
        inner = self.conv1(torch.relu(self.bn1(maps)))
        return torch.cat([maps, self.conv2(torch.relu(self.bn2(inner)))], 1)


def cifar_densenet(batch: int) -> tuple[nn.Module, Tensor]:
    """Return a DenseNet-BC-100 with growth 12 for 32 x 32 images in ten classes, and a batch of images."""
    torch.manual_seed(0)
    width, parts = 24, [nn.Conv2d(3, 24, 3, padding=1, bias=False)]
    blocks: list[nn.Module] = list(parts)
    for block in range(3):
        for _ in range(16):
            blocks.append(_Layer(width, 12))
            width += 12
        if block < 2:
            half = width // 2
            blocks += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, half, 1, bias=False), nn.AvgPool2d(2)]
            width = half
    blocks += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*blocks).eval(), torch.rand(batch, 3, 32, 32)


def large_head(batch: int) -> tuple[nn.Sequential, Tensor]:
    """Return a small backbone before a head of 1000 x 2048, and a batch of inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 1000))
    return model.eval(), torch.rand(batch, 64)

"""Networks in the places of the paper's, for ``paper_stand_ins.json``: a trained one, one with random weights."""

import timm
import torch
from torch import Tensor, nn

__all__ = ["Darknet", "darknet", "random_vit"]

_POOL = "M"
_WIDTHS: tuple[int | str, ...] = (
    *(16, _POOL, 32, _POOL, 16, 128, 16, 128, _POOL, 32, 256, 32, 256, _POOL),
    *(64, 512, 64, 512, 128),
)


class Darknet(nn.Module):
    """Tiny Darknet: images of 224 x 224, shape ``(batch, 3, 224, 224)`` in [0, 1], to logits of ImageNet-1k."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, convolutions = 3, 0
        for width in _WIDTHS:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            side = 3 if convolutions == 0 or convolutions % 2 == 1 else 1
            layers += [
                nn.Conv2d(channels, width, side, padding=side // 2, bias=False),
                nn.BatchNorm2d(width, eps=1e-3),
                nn.LeakyReLU(0.1),
            ]
            channels, convolutions = width, convolutions + 1
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images).mean((2, 3)))
        return logits


def darknet() -> Darknet:
    """Return the network, with random weights."""
    return Darknet()


def random_vit() -> nn.Module:
    """Return timm's smallest vision transformer for images of 160 x 160, with the random weights of one seed."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=1000)
    return model

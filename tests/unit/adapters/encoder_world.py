"""A small network with batch norm and dropout, with the interfaces that toolkits for OOD detection ask for."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "WIDTH", "Batches", "Net", "batches", "inputs_and_labels", "loader"]

CLASSES, WIDTH, _CHANNELS = 4, 12, 3
Batches = list[dict[str, Any]]


class Net(nn.Module):
    """A classifier in training mode: images of 4 x 4 to logits, and with `return_feature` to features as well."""

    def __init__(self, *, seed: int = 0, is_biased: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(_CHANNELS, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(0.5))
            self.fc = nn.Linear(WIDTH, CLASSES, bias=is_biased)
        self.train()

    def features(self, inputs: Tensor) -> Tensor:
        return self.body(inputs).mean((2, 3), keepdim=True)  # type: ignore[no-any-return]  # of a module

    def forward(self, inputs: Tensor, return_feature: bool = False) -> Any:
        features = self.features(inputs).flatten(1)
        logits = self.fc(features)
        return (logits, features) if return_feature else logits

    def get_fc(self) -> tuple[object, object]:
        bias = None if self.fc.bias is None else self.fc.bias.detach().cpu().numpy()
        return self.fc.weight.detach().cpu().numpy(), bias

    def quiet_features(self, inputs: Tensor) -> Tensor:
        """Return the features in eval mode, worked out by hand: no part of the network is switched."""
        convolution, norm = self.body[0], self.body[1]
        with torch.no_grad():
            maps = nn.functional.conv2d(inputs, convolution.weight, convolution.bias)  # type: ignore[arg-type]  # of a Sequential
            rows = (maps - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()  # type: ignore[index, operator]  # as above
            return rows.clamp_min(0).mean((2, 3))


def inputs_and_labels(rows: int, *, seed: int = 0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return images, shape ``(rows, 3, 4, 4)``, and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, _CHANNELS, 4, 4, generator=generator) + shift, torch.arange(rows) % CLASSES


def loader(inputs: Tensor, labels: Tensor, *, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Return batches of pairs."""
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def batches(inputs: Tensor, labels: Tensor | None = None, *, size: int = 16) -> Batches:
    """Return batches as OpenOOD's data sets give them; OOD labels are whatever their data set says."""
    parts = loader(inputs, torch.arange(len(inputs)) if labels is None else labels, size=size)
    return [{"index": index, "data": data, "label": label} for index, (data, label) in enumerate(parts)]

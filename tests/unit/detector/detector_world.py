"""Features, heads and detectors for the tests of the detector."""

from typing import Any

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios

__all__ = [
    "CLASSES",
    "FEATURES",
    "KINDS",
    "bias",
    "features",
    "fitted",
    "fused",
    "head_of",
    "loader",
    "made",
    "model",
    "weight",
]

FEATURES, CLASSES = 12, 4
KINDS = ("fusion", "paper")
"""What a detector can be: several scores fused, or the method of the paper alone."""


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(rows: int = 60, *, seed: int = 0) -> Tensor:
    """Return features as after a ReLU, shape ``(rows, FEATURES)``."""
    return _random(rows, FEATURES, seed=seed).relu()


def weight() -> Tensor:
    """Return a head's weight, shape ``(CLASSES, FEATURES)``."""
    return _random(CLASSES, FEATURES, seed=100)


def bias() -> Tensor:
    """Return a head's bias, shape ``(CLASSES,)``."""
    return _random(CLASSES, seed=101)


def model() -> nn.Sequential:
    """Return a ReLU and the head: its features are its inputs where those are not negative."""
    head = nn.Linear(FEATURES, CLASSES)
    head.weight.data, head.bias.data = weight(), bias()
    return nn.Sequential(nn.ReLU(), head)


def head_of(net: nn.Sequential) -> nn.Linear:
    """Return the last layer of a `model`."""
    head = net[-1]
    assert isinstance(head, nn.Linear)
    return head


def loader(count: int = 3, *, seed: int = 0) -> list[Tensor]:
    """Return batches of 20 features each."""
    return list(features(20 * count, seed=seed).split(20))


def fitted(ratios: Ratios | None = None) -> OPNP:
    """Return a detector fitted from features."""
    chosen = Ratios(w_min=0.3) if ratios is None else ratios
    return OPNP(ratios=chosen).fit_features(features(), weight=weight(), bias=bias())


def fused(rows: int = 400, **options: Any) -> OPNP:
    """Return a fusion fitted from features."""
    return OPNP(**options).fit_features(features(rows), weight=weight(), bias=bias())


def made(kind: str, **options: Any) -> OPNP:
    """Return a detector of one of `KINDS` that has seen nothing."""
    return OPNP(**options) if kind == "fusion" else OPNP(**{"ratios": Ratios(w_min=0.3), **options})

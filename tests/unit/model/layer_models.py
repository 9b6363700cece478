"""Small models with layers of every kind: linear on vectors and on tokens, convolutions of every geometry."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["CHANNELS", "SIZE", "TinyViT", "Twice", "cnn", "images", "seeded"]

CHANNELS, SIZE = 3, 10


def seeded(make: Callable[[], nn.Module], *, seed: int = 0) -> nn.Module:
    """Return the model in float64 and eval mode, with weights and running statistics of this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.get_buffer("running_mean"), -1, 1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model


def images(count: int = 7, *, seed: int = 0) -> Tensor:
    """Return images, shape ``(count, CHANNELS, SIZE, SIZE)``, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)


def cnn() -> nn.Module:
    """Return convolutions with stride, padding, groups and dilation, with BatchNorm and ReLUs that work in place."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, (3, 2), padding=(2, 1), dilation=2, groups=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 6, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(6, 6, (2, 3), padding=(1, 0), padding_mode="circular", stride=(1, 2)),
        nn.Flatten(),
        nn.LazyLinear(9),
        nn.ReLU(inplace=True),
        nn.Linear(9, 4),
    )


class TinyViT(nn.Module):
    """Patches, a class token, one block of attention and a perceptron, a head: linear layers on tokens."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, width, 5, stride=5)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patches(inputs).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, -1)
        tokens = tokens + self.out(nn.functional.scaled_dot_product_attention(query, key, value))
        tokens = tokens + self.mlp(self.second_norm(tokens))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


class Twice(nn.Module):
    """One layer that runs twice, and two layers that share one weight."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.again = nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.again(inputs))))
        hidden = torch.tanh(self.first(hidden)) - self.second(hidden)
        logits: Tensor = self.head(hidden)
        return logits

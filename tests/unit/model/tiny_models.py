"""Small models of every kind that is met in practice, and batches for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "FEATURES",
    "INPUTS",
    "Answering",
    "Named",
    "WithLogits",
    "batch",
    "batches",
    "compiled",
    "mlp",
    "read",
]

INPUTS, FEATURES, CLASSES = 6, 5, 3


def mlp(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return linear, ReLU, linear, with weights of this seed."""
    model = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.ReLU(), nn.Linear(FEATURES, CLASSES)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


def batch(rows: int = 8, *, seed: int = 0, width: int = INPUTS) -> Tensor:
    """Return inputs, shape ``(rows, width)``."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 3) -> list[Tensor]:
    """Return a loader of different batches."""
    return [batch(seed=seed) for seed in range(count)]


def compiled(module: nn.Module) -> nn.Module:
    """Return `torch.compile(module)` as the module that it is, whatever its annotation says."""
    wrapper: object = torch.compile(module, backend="eager")
    assert isinstance(wrapper, nn.Module)
    return wrapper


class Answering(nn.Module):
    """A body and a head, with something done to the head's output."""

    def __init__(self, after: Callable[[Tensor], object] = lambda logits: logits) -> None:
        super().__init__()
        inner = mlp()
        self.body = inner[:2]
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.fc.load_state_dict(inner[2].state_dict())
        self.after = after

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.fc(self.body(inputs)))


class Named(nn.Module):
    """Takes its input under one keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, pixel_values: Tensor, scale: float = 1.0) -> Tensor:
        outputs: Tensor = self.inner(pixel_values * scale)
        return outputs


@dataclass
class WithLogits:
    """The output of a model in the manner of Hugging Face."""

    logits: Tensor
    hidden_states: Mapping[str, Tensor] | None = None


def read(model: nn.Sequential, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (features, logits) of an `mlp` by running its layers."""
    with torch.no_grad():
        features = model[:2](inputs)
        return features, model[2](features)

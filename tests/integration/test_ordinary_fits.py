"""Ordinary fits, ten of each kind of batch, label and model: nothing is warned of, and labels are believed."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from opnp import OPNP

CLASSES, WIDTH, SAMPLES = 5, 12, 400


class Masked(nn.Module):
    """Averages tokens where a mask says so, and classifies the mean."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.fc = head

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        weights = torch.ones(tokens.shape[:2]) if attention_mask is None else attention_mask.float()
        logits: Tensor = self.fc((tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True))
        return logits


class World:
    """Classes round their prototypes, and models that know these: right answers, as after a training."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        prototypes = torch.randn(CLASSES, WIDTH, generator=generator)
        self.labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        self.inputs = prototypes[self.labels] + 0.7 * torch.randn(SAMPLES, WIDTH, generator=generator)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(prototypes)
            self.head.bias.copy_(-0.5 * prototypes.square().sum(1))
        self.plain = nn.Sequential(nn.Identity(), self.head).eval()
        self.lengths = torch.randint(2, 5, (SAMPLES,), generator=generator)
        self.mask = (torch.arange(4) < self.lengths[:, None]).long()

    def batches(self, *columns: object, size: int = 50) -> Iterator[tuple[object, ...]]:
        for start in range(0, SAMPLES, size):
            yield tuple(column[start : start + size] for column in columns)  # type: ignore[index]  # all can be cut


def hot(labels: Tensor) -> Tensor:
    return one_hot(labels, CLASSES)


LABELS: dict[str, Callable[[Tensor], object]] = {
    "int64": lambda labels: labels,
    "int32": lambda labels: labels.int(),
    "list": lambda labels: labels.tolist(),
    "NumPy": lambda labels: labels.numpy().astype(np.uint8),
    "column": lambda labels: labels[:, None],
    "whole floats": lambda labels: labels.double(),
    "one-hot": hot,
    "one-hot, floats": lambda labels: hot(labels).float(),
}
Made = Callable[[World], tuple[nn.Module, Sequence[object]]]


def labelled(form: Callable[[Tensor], object]) -> Made:
    """Return what makes pairs of inputs and labels of a form."""
    return lambda world: (world.plain, [*world.batches(world.inputs, form(world.labels))])


BATCHES: dict[str, Made] = {
    **{f"labels: {name}": labelled(form) for name, form in LABELS.items()},
    "inputs alone": lambda world: (world.plain, [x for (x,) in world.batches(world.inputs)]),
    "a data loader": lambda world: (world.plain, [*DataLoader(TensorDataset(world.inputs, world.labels), 64)]),
    "with paths": lambda world: (
        world.plain,
        [*world.batches(world.inputs, world.labels, [f"{row}.png" for row in range(SAMPLES)])],
    ),
    "tokens, mask and labels": lambda world: (
        Masked(world.head),
        [*world.batches(world.inputs[:, None].expand(-1, 4, -1), world.mask, world.labels)],
    ),
    "a mapping": lambda world: (
        Masked(world.head),
        [
            {"tokens": x, "attention_mask": mask, "labels": labels}
            for x, mask, labels in world.batches(world.inputs[:, None].expand(-1, 4, -1), world.mask, world.labels)
        ],
    ),
    "channels and positions": lambda world: (
        nn.Sequential(nn.Flatten(), world.head),
        [*world.batches(world.inputs.reshape(-1, 3, 2, 2), world.labels)],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_nothing_is_warned_of(name: str) -> None:
    """Ten draws of each; every sample's label is used where there is one."""
    for seed in range(10):
        model, batches = BATCHES[name](World(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector = OPNP().fit(model, batches, validation=batches)
            detector.verdict(batches[0])
        assert (detector.id_accuracy == {}) == (name == "inputs alone")
        assert all(share > 0.9 for share in detector.id_accuracy.values())

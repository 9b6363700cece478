"""Masks against Python's stable sort and double loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import Masks, keep_mask, neuron_mask, pruned_weight, weight_mask

SHARES = [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.25, 0.5), (0.45, 0.45)]


def loop_keep(row: list[float], lowest: float, highest: float) -> list[bool]:
    """Sort the indices stably, cross out the first and the last ones."""
    order = sorted(range(len(row)), key=row.__getitem__)
    keep = [True] * len(row)
    for index in order[: round(lowest * len(row))] + order[len(row) - round(highest * len(row)) :]:
        keep[index] = False
    return keep


def tied_sensitivity(seed: int, dtype: torch.dtype) -> Tensor:
    """Few distinct values, so that nearly every cut falls among equals; zeros stand for dead neurons."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (4, 30), generator=generator).to(dtype) / 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("lowest", "highest"), SHARES)
def test_masks_are_stable_sorts_of_each_ranking(lowest: float, highest: float, dtype: torch.dtype) -> None:
    shares: dict[str, Any] = {"lowest": lowest, "highest": highest}
    for seed in range(5):
        sensitivity = tied_sensitivity(seed, dtype)
        rows, flat = sensitivity.tolist(), sensitivity.flatten().tolist()
        of_rows, of_layer = [loop_keep(row, lowest, highest) for row in rows], loop_keep(flat, lowest, highest)
        assert keep_mask(sensitivity, **shares).tolist() == of_rows
        assert weight_mask(sensitivity, scope="class", **shares).tolist() == of_rows
        assert weight_mask(sensitivity, scope="layer", **shares).flatten().tolist() == of_layer
        assert neuron_mask(sensitivity.flatten(), **shares).tolist() == of_layer


def test_pruned_weight_is_zero_where_the_weight_or_its_neuron_goes() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 9, generator=generator)
    masks = Masks(torch.rand(6, 9, generator=generator) < 0.7, torch.rand(9, generator=generator) < 0.7)
    expected = [
        [weight[i, j].item() if bool(masks.weight[i, j]) and bool(masks.neuron[j]) else 0.0 for j in range(9)]
        for i in range(6)
    ]
    assert pruned_weight(weight, masks).tolist() == expected

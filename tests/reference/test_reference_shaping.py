"""ReAct, ASH-S and SCALE against loops over Python floats."""

import math

import pytest
import torch
from torch import Tensor

from opnp.core import ash_s, react, scale


def loop_react(row: list[float], threshold: float) -> list[float]:
    return [min(value, threshold) for value in row]


def loop_ash_s(row: list[float], quantile: float) -> list[float]:
    """Keep the largest values and those equal to the last of them, times exp(s1 / s2)."""
    last = sorted(row, reverse=True)[max(1, len(row) - round(quantile * len(row))) - 1]
    kept = [value if value >= last else 0.0 for value in row]
    factor = math.exp(min(40.0, math.fsum(row) / math.fsum(kept))) if math.fsum(kept) > 0 else 1.0
    return [value * factor for value in kept]


def loop_scale(row: list[float], quantile: float) -> list[float]:
    largest = sorted(row, reverse=True)[: max(1, len(row) - round(quantile * len(row)))]
    factor = math.exp(min(40.0, math.fsum(row) / math.fsum(largest))) if math.fsum(largest) > 0 else 1.0
    return [value * factor for value in row]


def rectified_features(seed: int) -> Tensor:
    """A third zeros, many ties, one row of zeros, one row with a single value above zero."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-4, 9, (8, 21), generator=generator).double().clamp_min(0) / 4
    features[2] = 0
    features[3] = 0
    features[3, 5] = 0.25
    return features


def test_react_clips_from_above() -> None:
    features = rectified_features(0)
    assert react(features, threshold=0.8).tolist() == [loop_react(row, 0.8) for row in features.tolist()]


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.65, 0.85, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("seed", [1, 2])
def test_ash_s_and_scale_row_by_row(seed: int, quantile: float) -> None:
    features = rectified_features(seed)
    rows = features.tolist()
    expected_ash_s = torch.tensor([loop_ash_s(row, quantile) for row in rows], dtype=torch.float64)
    expected_scale = torch.tensor([loop_scale(row, quantile) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(ash_s(features, quantile=quantile), expected_ash_s, rtol=1e-12, atol=0)
    torch.testing.assert_close(scale(features, quantile=quantile), expected_scale, rtol=1e-12, atol=0)

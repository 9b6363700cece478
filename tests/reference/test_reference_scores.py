"""Scores against formulas over Python floats, one sample at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opnp.core import energy_score, entropy_score, gen_score, max_logit_score, msp_score

MODERATE = torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
SATURATED = torch.tensor(
    [
        [14.0, 0.0, -1.0],
        [17.0, 0.0, 0.0],
        [20.0, 0.0, -30.0],
        [40.0, 0.0, 1.0],
        [200.0, -3.0, 0.0],
        [1e4, 0.0, 0.0],
        [-1e4, 1e4, 1e4],
    ],
    dtype=torch.float64,
)


def loop_probabilities(row: list[float], temperature: float) -> tuple[list[float], list[float]]:
    """The probabilities and their complements, each complement as the sum of the others: nothing cancels."""
    powers = [math.exp((logit - max(row)) / temperature) for logit in row]
    whole = math.fsum(powers)
    rests = [math.fsum(powers[:index] + powers[index + 1 :]) / whole for index in range(len(row))]
    return [power / whole for power in powers], rests


def loop_energy(row: list[float], temperature: float = 1.0) -> float:
    largest = max(row)
    return -largest - temperature * math.log(math.fsum(math.exp((logit - largest) / temperature) for logit in row))


def loop_msp(row: list[float], temperature: float = 1.0) -> float:
    return -max(loop_probabilities(row, temperature)[0])


def loop_entropy(row: list[float], temperature: float = 1.0) -> float:
    return -math.fsum(p * math.log(p) for p in loop_probabilities(row, temperature)[0] if p > 0)


def loop_gen(row: list[float], temperature: float = 1.0, gamma: float = 0.1, top: int = 100) -> float:
    pairs = sorted(zip(*loop_probabilities(row, temperature), strict=True), reverse=True)[:top]
    return math.fsum((p * rest) ** gamma for p, rest in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("logits", "temperature"), [(MODERATE, 0.5), (MODERATE, 1.0), (MODERATE, 2.0), (SATURATED, 1.0)]
)
@pytest.mark.parametrize(
    ("score", "loop"),
    [(energy_score, loop_energy), (msp_score, loop_msp), (entropy_score, loop_entropy), (gen_score, loop_gen)],
)
def test_scores_are_their_formulas(
    score: Callable[..., Tensor],
    loop: Callable[[list[float], float], float],
    logits: Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> None:
    """At gamma 0.1 a complement of 1e-9 still weighs 0.13 in GEN, so it must not vanish where 1 - p rounds to 0."""
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    expected = torch.tensor([loop(row, temperature) for row in logits.to(dtype).tolist()], dtype=dtype)
    found = score(logits.to(dtype), temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-30 if score is gen_score else tolerance / 100)


def test_max_logit_is_minus_the_largest() -> None:
    assert max_logit_score(MODERATE).tolist() == [-max(row) for row in MODERATE.tolist()]


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 1), (0.1, 4), (0.5, 9), (0.01, 100)])
def test_gen_sums_the_largest_probabilities(gamma: float, top: int) -> None:
    expected = torch.tensor([loop_gen(row, 1.0, gamma, top) for row in MODERATE.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gen_score(MODERATE, gamma=gamma, top=top), expected, rtol=1e-12, atol=0)

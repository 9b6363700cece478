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


def loop_energy(row: list[float], temperature: float) -> float:
    largest = max(row)
    return -largest - temperature * math.log(math.fsum(math.exp((logit - largest) / temperature) for logit in row))


def loop_msp(row: list[float], temperature: float) -> float:
    return -max(loop_probabilities(row, temperature)[0])


def loop_entropy(row: list[float], temperature: float) -> float:
    return -math.fsum(p * math.log(p) for p in loop_probabilities(row, temperature)[0] if p > 0)


def loop_gen(row: list[float], temperature: float, gamma: float = 0.1, top: int = 100) -> float:
    pairs = sorted(zip(*loop_probabilities(row, temperature), strict=True), reverse=True)[:top]
    return math.fsum((p * rest) ** gamma for p, rest in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("score", "loop"),
    [(energy_score, loop_energy), (msp_score, loop_msp), (entropy_score, loop_entropy), (gen_score, loop_gen)],
)
def test_scores_on_moderate_logits(
    score: Callable[..., Tensor], loop: Callable[[list[float], float], float], temperature: float, dtype: torch.dtype
) -> None:
    logits = MODERATE.to(dtype)
    expected = torch.tensor([loop(row, temperature) for row in logits.tolist()], dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(score(logits, temperature=temperature), expected, rtol=tolerance, atol=tolerance)


def test_max_logit_is_minus_the_largest() -> None:
    assert max_logit_score(MODERATE).tolist() == [-max(row) for row in MODERATE.tolist()]


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 1), (0.1, 4), (0.5, 9), (0.01, 100)])
def test_gen_sums_the_largest_probabilities(gamma: float, top: int) -> None:
    expected = torch.tensor([loop_gen(row, 1.0, gamma, top) for row in MODERATE.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gen_score(MODERATE, gamma=gamma, top=top), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_gen_keeps_the_term_of_a_probability_close_to_one(dtype: torch.dtype, tolerance: float) -> None:
    """At gamma 0.1 a complement of 1e-9 still weighs 0.13, so it must not vanish where 1 - p rounds to 0."""
    expected = torch.tensor([loop_gen(row, 1.0) for row in SATURATED.tolist()], dtype=dtype)
    torch.testing.assert_close(gen_score(SATURATED.to(dtype)), expected, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("score", "loop"), [(energy_score, loop_energy), (msp_score, loop_msp), (entropy_score, loop_entropy)]
)
def test_scores_on_saturated_logits(
    score: Callable[..., Tensor], loop: Callable[[list[float], float], float], dtype: torch.dtype
) -> None:
    expected = torch.tensor([loop(row, 1.0) for row in SATURATED.tolist()], dtype=dtype)
    torch.testing.assert_close(score(SATURATED.to(dtype)), expected, rtol=1e-6, atol=1e-6)

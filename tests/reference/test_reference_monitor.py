"""Online p-values and the test martingale against double loops over Python's numbers."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from opnp.monitor import DriftMonitor, drift_of_p_values
from opnp.monitor.drift import BIN_EDGES, MartingaleState, log_wealth
from opnp.monitor.online_p_values import (
    CALIBRATION_TIES,
    RANKS,
    STREAM_TIES,
    cell_of_scores,
    earlier_counts,
    numbered_uniforms,
    online_p_value,
    ordered_keys,
)
from tests.reference.test_reference_members import GOLDEN, WORD, mixed


def loop_uniforms(count: int, *, seed: int) -> list[float]:
    """Return splitmix64 as its authors write it, from a seed that is mixed once."""
    state, found = mixed((seed * GOLDEN + 1) % WORD), []
    for _ in range(count):
        state = (state + GOLDEN) % WORD
        found.append(((mixed(state) >> 12) + 0.5) / 2**52)
    return found


def uniforms_of(count: int, seed: int, sequence: int) -> list[float]:
    found: list[float] = numbered_uniforms(0, count, seed=seed, sequence=sequence).tolist()
    return found


def loop_p_values(scores: list[float], calibration: list[float], *, seed: int) -> list[float]:
    """Return online p-values by cells, every sample compared with every sample before it."""
    ties = uniforms_of(len(calibration), seed, CALIBRATION_TIES)
    pool = list(zip(sorted(calibration), ties, strict=True))
    own = list(zip(scores, uniforms_of(len(scores), seed, STREAM_TIES), strict=True))
    chances = uniforms_of(len(scores), seed, RANKS)
    cells = [sum(other > pair for other in pool) for pair in own]
    found = []
    for number, cell in enumerate(cells):
        greater = cell + sum(other < cell for other in cells[:number])
        equal = sum(other == cell for other in cells[:number])
        found.append((greater + chances[number] * (1 + equal)) / (len(pool) + number + 1))
    return found


def power(p_value: float, exponent: float) -> float:
    """Return the mean of k p^(k - 1) over the bin of a p-value."""
    low, high = next((low, high) for low, high in itertools.pairwise(BIN_EDGES) if low <= p_value < high)
    return (math.pow(high, exponent) - math.pow(low, exponent)) / (high - low)


def tent(p_value: float) -> float:
    """Return 1/2 + 2 min(m, 1 - m) for the middle m of the bin of a p-value."""
    middle = next((low + high) / 2 for low, high in itertools.pairwise(BIN_EDGES) if low <= p_value < high)
    return 0.5 + 2 * min(middle, 1 - middle)


def loop_wealth(p_values: list[float], *, is_one_sided: bool) -> float:
    """Return the wealth at the end: the mean over bets, and over every moment of the jump, of products of bets."""
    bets = [[0.88 + 0.12 * power(value, 0.3) for value in p_values], [power(value, 0.8) for value in p_values]]
    if not is_one_sided:
        bets.append([power(math.nextafter(1 - value, 0), 0.8) for value in p_values])
        bets.append([tent(value) for value in p_values])
    waiting = [1 / (1 + math.log1p(number / 100)) for number in range(len(p_values) + 1)]
    total = waiting[-1]
    for values in bets:
        for start in range(len(values)):
            total += (waiting[start] - waiting[start + 1]) / len(bets) * math.prod(values[start:])
    return total


def p_values_of(samples: int, *, seed: int) -> Tensor:
    """Return p-values on no edge: uniform at first, then some that pile up at both ends and in the middle."""
    draw = random.Random(seed)  # noqa: S311  # a simulation, no secret
    values = [draw.random() for _ in range(samples)]
    for number in range(samples // 2, samples):
        values[number] = draw.choice([values[number], 0.003 + 0.001 * draw.random(), 0.4 + 0.05 * draw.random(), 0.995])
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_numbered_uniforms_are_splitmix64(seed: int) -> None:
    for sequence in range(3):
        expected = loop_uniforms(200, seed=3 * seed + sequence)
        assert numbered_uniforms(0, 200, seed=seed, sequence=sequence).tolist() == expected


@pytest.mark.parametrize(("samples", "digits"), [(1, 1), (20, 0), (20, 8), (200, 1)])
def test_online_p_values_are_counted(samples: int, digits: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    calibration = torch.randn(samples, generator=generator).double().round(decimals=digits)
    scores = torch.randn(300, generator=generator).double().round(decimals=digits)
    pool, own, ranks = (
        numbered_uniforms(0, count, seed=3, sequence=at) for at, count in enumerate((samples, 300, 300))
    )
    values = calibration.unique()
    keys = ordered_keys(calibration.sort().values, pool, values=values).sort().values
    cells = cell_of_scores(ordered_keys(scores, own, values=values), keys)
    above, equal, counts = earlier_counts(cells, torch.zeros(samples + 1, dtype=torch.int64))
    found = online_p_value(cells + above, equal, ranks, calibration=samples, start=0)
    assert found.tolist() == loop_p_values(scores.tolist(), calibration.tolist(), seed=3)
    assert counts.tolist() == [int((cells == cell).sum()) for cell in range(samples + 1)]


@pytest.mark.parametrize("samples", [1, 40, 256, 700])
@pytest.mark.parametrize("is_one_sided", [False, True])
def test_wealth_is_the_mean_over_bets_and_jumps(samples: int, *, is_one_sided: bool) -> None:
    p_values = p_values_of(samples, seed=samples)
    found, state = log_wealth(p_values, MartingaleState.start(is_one_sided=is_one_sided))
    expected = math.log(loop_wealth(p_values.tolist(), is_one_sided=is_one_sided))
    assert float(found[-1]) == pytest.approx(expected, abs=1e-9)
    assert state.samples == samples


def test_the_monitor_is_both_together() -> None:
    generator = torch.Generator().manual_seed(5)
    calibration, scores = torch.randn(60, generator=generator), torch.randn(150, generator=generator) + 0.3
    wealth = DriftMonitor(calibration, seed=9).update(scores)
    p_values = loop_p_values(scores.double().tolist(), calibration.double().tolist(), seed=9)
    expected = loop_wealth(p_values, is_one_sided=False)
    assert float(wealth[-1]) == pytest.approx(math.log(expected), abs=1e-9)


def test_without_calibration_scores_ranks_are_those_of_all_scores() -> None:
    generator = torch.Generator().manual_seed(6)
    calibration, scores = torch.randn(60, generator=generator), torch.randn(150, generator=generator) + 0.3
    conformal = [(1 + int((calibration >= score).sum())) / 61 for score in scores]
    uniforms = uniforms_of(150, 2, RANKS)
    p_values = []
    for number, score in enumerate(scores):
        greater = int((calibration > score).sum()) + int((scores[:number] > score).sum())
        p_values.append((greater + uniforms[number]) / (60 + number + 1))
    found = drift_of_p_values(scores, torch.tensor(conformal, dtype=torch.float64), calibration_samples=60, seed=2)
    assert found.log_wealth == pytest.approx(math.log(loop_wealth(p_values, is_one_sided=True)), abs=1e-9)

"""Online p-values and the test martingale against double loops over Python's numbers."""

import math
import random

import pytest
import torch
from torch import Tensor

from opnp.core.martingale import BIN_EDGES, MartingaleState, log_wealth
from opnp.core.online_p_values import (
    cell_of_scores,
    earlier_counts,
    numbered_uniforms,
    online_p_value,
    ordered_keys,
)
from opnp.serve.monitor import DriftMonitor
from opnp.serve.p_value_stream import drift_of_p_values
from opnp.serve.stream_uniforms import StreamUniforms

_MASK = (1 << 64) - 1
_CUTS = (0.01, 0.05, 0.1, 0.3)
_WEIGHTS = {0.04: 0.25, 0.12: 0.25, 0.4: 0.25}
_MIRRORED = {0.1: 0.05, 0.4: 0.05}


def loop_uniforms(count: int, *, seed: int) -> list[float]:
    """Return splitmix64 as its authors write it, from a seed that is mixed once."""

    def mixed(word: int) -> int:
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        return word ^ (word >> 31)

    state, found = mixed((seed * 0x9E3779B97F4A7C15 + 1) & _MASK), []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        found.append(((mixed(state) >> 12) + 0.5) / 2**52)
    return found


def loop_p_values(scores: list[float], calibration: list[float], *, seed: int) -> list[float]:
    """Return online p-values by cells, every sample compared with every sample before it."""
    uniforms = StreamUniforms(seed)
    ties = uniforms.calibration_ties(len(calibration)).tolist()
    pool = list(zip(sorted(calibration), ties, strict=True))
    own = list(zip(scores, uniforms.stream_ties(len(scores), start=0).tolist(), strict=True))
    chances = uniforms.ranks(len(scores), start=0).tolist()
    cells = [sum(other > pair for other in pool) for pair in own]
    found = []
    for number, cell in enumerate(cells):
        greater = cell + sum(other < cell for other in cells[:number])
        equal = sum(other == cell for other in cells[:number])
        found.append((greater + chances[number] * (1 + equal)) / (len(pool) + number + 1))
    return found


def piled(p_value: float) -> float:
    """Return the mean of 1[p < c] / c."""
    return sum((p_value < cut) / cut for cut in _CUTS) / len(_CUTS)


def loop_wealth(p_values: list[float], *, is_one_sided: bool) -> float:
    """Return the wealth at the end: the weighted mean, over strategies and over every start, of products of bets."""
    bets: list[tuple[float, list[float]]] = []
    for share, weight in _WEIGHTS.items():
        bets.append((weight, [1 - share + share * piled(value) for value in p_values]))
    for share, weight in _MIRRORED.items():
        bets.append((weight, [1 - share + share * piled(math.nextafter(1 - value, 0)) for value in p_values]))
    histogram = []
    for number, value in enumerate(p_values):
        seen = p_values[max(0, number // 256 * 256 - 256) : number]
        count = sum(int(other * 10) == int(value * 10) for other in seen)
        histogram.append(10 * (count + 5) / (len(seen) + 50))
    bets.append((0.15, histogram))
    if is_one_sided:
        bets = [(1 / 3, values) for _, values in bets[:3]]
    aside = [1 / (1 + math.log1p(number / 100)) for number in range(len(p_values) + 1)]
    total = aside[-1]
    for weight, values in bets:
        for start in range(len(values)):
            total += weight * (aside[start] - aside[start + 1]) * math.prod(values[start:])
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
    assert numbered_uniforms(0, 200, seed=seed).tolist() == loop_uniforms(200, seed=seed)


@pytest.mark.parametrize(("samples", "digits"), [(1, 1), (20, 0), (20, 8), (200, 1)])
def test_online_p_values_are_counted(samples: int, digits: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    calibration = torch.randn(samples, generator=generator).double().round(decimals=digits)
    scores = torch.randn(300, generator=generator).double().round(decimals=digits)
    uniforms = StreamUniforms(3)
    values = calibration.unique()
    keys = ordered_keys(calibration.sort().values, uniforms.calibration_ties(samples), values=values).sort().values
    cells = cell_of_scores(ordered_keys(scores, uniforms.stream_ties(300, start=0), values=values), keys)
    above, equal, counts = earlier_counts(cells, torch.zeros(samples + 1, dtype=torch.int64))
    found = online_p_value(cells + above, equal, uniforms.ranks(300, start=0), calibration=samples, start=0)
    assert found.tolist() == loop_p_values(scores.tolist(), calibration.tolist(), seed=3)
    assert counts.tolist() == [int((cells == cell).sum()) for cell in range(samples + 1)]


@pytest.mark.parametrize("samples", [1, 40, 256, 700])
@pytest.mark.parametrize("is_one_sided", [False, True])
def test_wealth_is_the_mean_over_strategies_and_starts(samples: int, *, is_one_sided: bool) -> None:
    p_values = p_values_of(samples, seed=samples)
    found, state = log_wealth(p_values, MartingaleState.start(), is_one_sided=is_one_sided)
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
    uniforms = StreamUniforms(2).ranks(150, start=0).tolist()
    p_values = []
    for number, score in enumerate(scores):
        greater = int((calibration > score).sum()) + int((scores[:number] > score).sum())
        p_values.append((greater + uniforms[number]) / (60 + number + 1))
    found = drift_of_p_values(scores, torch.tensor(conformal, dtype=torch.float64), calibration_samples=60, seed=2)
    assert found.log_wealth == pytest.approx(math.log(loop_wealth(p_values, is_one_sided=True)), abs=1e-9)


def test_every_edge_that_bets_turn_at_is_an_edge_of_the_bins() -> None:
    assert {*_CUTS, *(1 - cut for cut in _CUTS), *(number / 10 for number in range(11))} <= set(BIN_EDGES)

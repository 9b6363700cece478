"""Class holdout against its definition: draw by draw, sample by sample, pair by pair, in Python's own floats."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opnp.core import ScoreName
from opnp.core.holdout import class_draws, holdout_auroc


def loop_logsumexp(row: list[float]) -> float:
    top = max(row)
    return top + math.log(math.fsum(math.exp(value - top) for value in row))


def loop_energy(row: list[float], temperature: float) -> float:
    return -temperature * loop_logsumexp([value / temperature for value in row])


def loop_msp(row: list[float], temperature: float) -> float:
    return -math.exp(max(row) / temperature - loop_logsumexp([value / temperature for value in row]))


def loop_max_logit(row: list[float], temperature: float) -> float:
    return -max(row)


def loop_entropy(row: list[float], temperature: float) -> float:
    normaliser = loop_logsumexp([value / temperature for value in row])
    logs = [value / temperature - normaliser for value in row]
    return -math.fsum(math.exp(log) * log for log in logs)


LOOPS: dict[ScoreName, Callable[[list[float], float], float]] = {
    "energy": loop_energy,
    "msp": loop_msp,
    "max_logit": loop_max_logit,
    "entropy": loop_entropy,
}


def loop_auroc(inside: list[float], outside: list[float]) -> float:
    twice = sum(2 * (high > low) + (high == low) for high in outside for low in inside)
    return twice / (2 * len(inside) * len(outside))


def loop_holdout(logits: Tensor, labels: Tensor, kept: Tensor, score: ScoreName, temperature: float) -> list[float]:
    values = []
    for draw in kept.tolist():
        inside: list[float] = []
        outside: list[float] = []
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            known = [value for value, stays in zip(row, draw, strict=True) if stays]
            (inside if draw[label] else outside).append(LOOPS[score](known, temperature))
        values.append(loop_auroc(inside, outside))
    return values


def confused_logits(seed: int, *, samples: int = 120, classes: int = 9) -> tuple[Tensor, Tensor]:
    """Logits of a classifier that is right most of the time, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(samples), labels] += 3
    return logits, labels


@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("score", LOOPS)
@pytest.mark.parametrize("seed", range(3))
def test_every_draw_is_the_auroc_of_its_own_small_problem(seed: int, score: ScoreName, temperature: float) -> None:
    logits, labels = confused_logits(seed)
    kept = class_draws(labels, 9, shares=(0.2, 0.4, 0.7), draws=6, seed=seed)
    found = holdout_auroc(logits, labels, kept, score=score, temperature=temperature)
    assert found.dtype == torch.float64
    assert len(set(found.tolist())) > 1
    assert found.tolist() == pytest.approx(loop_holdout(logits, labels, kept, score, temperature), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_narrow_logits_are_ranked_as_their_float64_copies_nearly(dtype: torch.dtype) -> None:
    """A score is rounded to float32: of the 120 x 120 / 4 pairs at most a few come to lie the other way round."""
    logits, labels = confused_logits(7)
    kept = class_draws(labels, 9, shares=(0.5,), draws=4)
    narrow = logits.to(dtype)
    expected = loop_holdout(narrow.double(), labels, kept, "energy", 1.0)
    assert holdout_auroc(narrow, labels, kept).tolist() == pytest.approx(expected, abs=3 / 3600)


def test_ties_count_half_and_whole_numbers_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (80, 5), generator=generator).double()
    labels = torch.randint(0, 5, (80,), generator=generator)
    kept = class_draws(labels, 5, shares=(0.4,), draws=5)
    found = holdout_auroc(logits, labels, kept, score="max_logit").tolist()
    assert found == loop_holdout(logits, labels, kept, "max_logit", 1.0)


def test_the_rows_that_go_are_not_looked_at() -> None:
    """Whatever the logits of the classes that were left out, a draw gives the same."""
    logits, labels = confused_logits(3)
    kept = class_draws(labels, 9, shares=(0.5,), draws=1)
    changed = torch.where(kept, logits, 1e6 * logits)
    assert not torch.equal(changed, logits)
    assert torch.equal(holdout_auroc(changed, labels, kept), holdout_auroc(logits, labels, kept))

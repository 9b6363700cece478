"""Scores: names, dtypes, extreme logits and errors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import (
    SCORE_NAMES,
    ScoreName,
    energy_score,
    entropy_score,
    gen_score,
    max_logit_score,
    msp_score,
    score_logits,
)
from opnp.core.scores import energy_rows
from opnp.errors import InputTypeError, OptionError, ShapeError

FUNCTIONS: dict[ScoreName, Callable[..., Tensor]] = {
    "energy": energy_score,
    "msp": msp_score,
    "max_logit": max_logit_score,
    "entropy": entropy_score,
    "gen": gen_score,
}
LOGITS = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)) * 4


def test_every_name_has_its_function() -> None:
    assert list(FUNCTIONS) == list(SCORE_NAMES)
    for name, function in FUNCTIONS.items():
        options = {} if name == "max_logit" else {"temperature": 2.0}
        assert score_logits(LOGITS, score=name).equal(function(LOGITS))
        assert tuple(score_logits(LOGITS[:0], score=name).shape) == (0,)
        assert score_logits(LOGITS, score=name, temperature=2.0).equal(function(LOGITS, **options))
    assert score_logits(LOGITS).equal(energy_score(LOGITS))


@pytest.mark.parametrize("name", SCORE_NAMES)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_scored_in_float32(name: ScoreName, dtype: torch.dtype, expected: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    found = score_logits(logits, score=name)
    assert found.dtype == expected
    assert tuple(found.shape) == (9,)
    assert found.equal(score_logits(logits.to(expected), score=name))


@pytest.mark.parametrize("name", SCORE_NAMES)
@pytest.mark.parametrize("temperature", [0.01, 1.0, 1000.0])
def test_logits_of_ten_thousand_give_the_float64_scores(name: ScoreName, temperature: float) -> None:
    logits = torch.cat([LOGITS.sign() * 1e4, LOGITS * 2500, -1e4 + LOGITS, torch.full((1, 6), 1e4)])
    found = score_logits(logits, score=name, temperature=temperature)
    expected = score_logits(logits.double(), score=name, temperature=temperature)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_large_logits_that_differ_a_little_are_told_apart_at_low_temperature(name: ScoreName) -> None:
    """10000 / 0.01 has a spacing of 0.06 in float32, but the difference of the logits is exact."""
    logits = torch.tensor([[10000.0, 9999.99], [10000.0, 9999.98]])
    found = score_logits(logits, score=name, temperature=0.01)
    expected = score_logits(logits.double(), score=name, temperature=0.01)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_classes_masked_with_minus_infinity_do_not_count(name: ScoreName) -> None:
    masked = torch.cat([LOGITS, torch.full((9, 2), -torch.inf)], dim=1)
    torch.testing.assert_close(score_logits(masked, score=name), score_logits(LOGITS, score=name))


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_scores_keep_to_their_ranges(name: ScoreName) -> None:
    logits = torch.cat([LOGITS, torch.zeros(1, 6), torch.full((1, 6), -1e4), torch.eye(6) * 1e4])
    scores = score_logits(logits, score=name)
    low, high = {
        "energy": (-1.1e4, 1.1e4),
        "msp": (-1.0, -1 / 6),
        "max_logit": (-1e4, 1e4),
        "entropy": (0.0, math.log(6)),
        "gen": (0.0, 6 * (5 / 36) ** 0.1),
    }[name]
    assert bool((scores >= low - 1e-6).all())
    assert bool((scores <= high + 1e-5).all())


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_what_are_no_logits_is_refused(name: ScoreName) -> None:
    with pytest.raises(ShapeError, match=r"`logits` must have shape \(batch, classes\), got \(6,\)"):
        score_logits(LOGITS[0], score=name)
    with pytest.raises(InputTypeError, match=r"`logits` must be floating point, got torch\.int64"):
        score_logits(LOGITS.long(), score=name)


@pytest.mark.parametrize("name", [name for name in SCORE_NAMES if name != "max_logit"])
@pytest.mark.parametrize("temperature", [0.0, "2"])
def test_what_is_no_temperature_is_refused(name: ScoreName, temperature: Any) -> None:
    with pytest.raises(OptionError, match="`temperature` must be a positive finite number"):
        score_logits(LOGITS, score=name, temperature=temperature)


def test_options_out_of_range_are_refused() -> None:
    for gamma in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(OptionError, match=r"`gamma` must lie in \(0, 1\), got"):
            gen_score(LOGITS, gamma=gamma)
    with pytest.raises(OptionError, match="`top` must be at least 1, got 0"):
        gen_score(LOGITS, top=0)
    name: Any = "odin"
    with pytest.raises(OptionError, match="`score` must be one of energy, msp, max_logit, entropy, gen, got 'odin'"):
        score_logits(LOGITS, score=name)


def test_infinite_logits_leave_the_energy_of_other_rows_alone() -> None:
    logits = torch.tensor([[math.inf, 0.0], [-math.inf, -math.inf], [2.0, 4.0]], dtype=torch.float64)
    for temperature in (1.0, 2.0):
        found = energy_score(logits, temperature=temperature).tolist()
        exponents = (math.exp(2 / temperature), math.exp(4 / temperature))
        assert found == [-math.inf, math.inf, pytest.approx(-temperature * math.log(sum(exponents)), abs=1e-12)]


def test_gen_takes_the_100_largest_to_the_power_of_a_tenth_unless_told() -> None:
    logits = torch.randn(3, 120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert gen_score(logits).equal(gen_score(logits, temperature=1.0, gamma=0.1, top=100))
    assert bool((gen_score(logits) < gen_score(logits, top=101)).all())


@pytest.mark.parametrize("name", [name for name in SCORE_NAMES if name != "max_logit"])
def test_above_a_temperature_of_1000_scores_are_float64(name: ScoreName) -> None:
    assert score_logits(LOGITS, score=name, temperature=1000.0).dtype == torch.float32
    assert score_logits(LOGITS, score=name, temperature=1000.5).dtype == torch.float64


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_the_energy_of_rows_is_the_energy(temperature: float) -> None:
    kept = LOGITS.clone()
    assert energy_rows(LOGITS, temperature=temperature).equal(energy_score(LOGITS, temperature=temperature))
    assert LOGITS.equal(kept)
    assert energy_rows(torch.tensor([[math.inf, 0.0], [0.0, -math.inf]])).isnan().tolist() == [True, False]

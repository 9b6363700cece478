"""Scores of extreme logits against the formulas at 50 digits."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import SCORE_NAMES, ScoreName, score_logits
from opnp.errors import OptionError
from tests.reliability.numerics_world import DTYPES, EXACT, TEMPERATURES, exact_score, extreme_rows, numbers
from tests.tried import Tried


def allowed_error(logits: Tensor, exact: Any, name: ScoreName, temperature: float, dtype: torch.dtype) -> Any:
    """Return what a score may be off by: some units in the last place, of the exponents where the score has those.

    The energy of C classes is the sum of two terms, which may cancel. Entropy and GEN are made of powers: the error of
    an exponent z, z units in the last place, is one of theirs. What is below the normal numbers may be lost.
    """
    unit, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    if name == "max_logit":
        return 0
    if name == "energy":
        largest = EXACT.mpf(float(logits.double().amax()))
        return 4 * unit * max(abs(largest), EXACT.mpf(temperature) * EXACT.log(max(2, len(logits))), abs(exact))
    spread = EXACT.mpf(float(logits.double().amax())) - EXACT.mpf(float(logits.double().amin()))
    exponent = 0 if name == "msp" else min(spread / EXACT.mpf(temperature), 750)
    return (8 + exponent) * unit * abs(exact) + 1000 * tiny


def require_exact(logits: Tensor, temperature: float) -> None:
    """Compare every score of every row."""
    for name in SCORE_NAMES:
        scores = score_logits(logits, score=name, temperature=temperature)
        is_wide = logits.dtype == torch.float64 or (temperature > 1000 and name != "max_logit")
        assert scores.dtype == (torch.float64 if is_wide else torch.float32)
        assert bool(scores.isfinite().all())
        for row, score in zip(logits, scores.tolist(), strict=True):
            exact = exact_score(numbers(row.tolist()), name, temperature)
            error = abs(EXACT.mpf(score) - exact)
            assert error <= allowed_error(row, exact, name, temperature, scores.dtype), (name, row.tolist(), score)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [20, pytest.param(400, marks=pytest.mark.long)])
def test_scores_of_any_logits_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    tried("numerics", "rows of extreme logits, each scored in five ways", 3 * trials)
    highest = 4 if dtype == torch.float16 else 38

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=trials, suppress_health_check=list(HealthCheck)
    )
    @given(logits=extreme_rows(rows=3, width=5, highest=highest), temperature=st.sampled_from(TEMPERATURES))
    def check(logits: Tensor, temperature: float) -> None:
        require_exact(logits.to(dtype), temperature)

    check()


@pytest.mark.reliability
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_scores_of_named_extremes_are_exact(tried: Tried, temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [
            [1e4, 1e4, 1e4, 1e4],
            [-1e4, -1e4, -1e4, -1e4],
            [1e4, -1e4, 0.0, -0.0],
            [1e4, 1e4 - 0.01, -1e4, 0.0],
            [0.0, -0.0, 0.0, 0.0],
            [1e-30, 2e-30, 0.0, -1e-30],
            [1e30, 1e-30, -1e30, 0.0],
            [3e38, -3e38, 3e38, 1.0],
            [1e-40, 2e-40, 3e-40, 0.0],
            [20.0, 0.0, 0.0, 0.0],
        ],
        dtype=dtype,
    )
    tried("numerics", "rows of extreme logits, each scored in five ways", len(logits))
    require_exact(logits, temperature)


@pytest.mark.reliability
@pytest.mark.parametrize("temperature", [1e-31, 1e-45, 1e31, 1e308])
def test_temperatures_that_float32_has_no_room_for_are_refused(tried: Tried, temperature: float) -> None:
    """At 1e-46 the quotient 0 / T would be NaN in float32, and at 1e39 the energy infinite."""
    tried("numerics", "temperatures beyond float32")
    for name in SCORE_NAMES[:2]:
        with pytest.raises(OptionError, match=r"`temperature` must lie between 1e-30 and 1e\+30, got 1e"):
            score_logits(torch.zeros(1, 2), score=name, temperature=temperature)
    for name in SCORE_NAMES:
        for bound in (1e-30, 1e30):
            assert bool(score_logits(torch.eye(3), score=name, temperature=bound).isfinite().all())


@pytest.mark.reliability
@pytest.mark.parametrize("name", [name for name in SCORE_NAMES if name != "max_logit"])
@pytest.mark.parametrize("temperature", [1e4, 1e6])
def test_inputs_keep_their_order_at_a_high_temperature(tried: Tried, name: ScoreName, temperature: float) -> None:
    """At T = 1e6 the energies of 1000 classes are about -7e6, where float32 has a spacing of 0.5."""
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * 5
    tried("numerics", "inputs whose order by a score is compared at high temperatures", len(logits))
    exact = [exact_score(numbers(row), name, temperature) for row in logits.tolist()]
    order = sorted(range(len(exact)), key=exact.__getitem__)
    assert score_logits(logits, score=name, temperature=temperature).argsort(stable=True).tolist() == order

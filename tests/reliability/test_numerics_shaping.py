"""Shaping of extreme features against the formulas at 50 digits."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp import OPNP, Ratios
from opnp.core import SCALE, ReAct, ash_s, react, scale
from opnp.errors import NonFiniteError
from tests.reliability.numerics_world import DTYPES, EXACT, extreme_rows, numbers
from tests.tried import Tried

QUANTILES = (0.3, 0.65, 0.9, 0.99)


def exact_shaped(row: list[float], method: str, quantile: float) -> list[object]:
    """Return a row times exp(s1 / s2), the exponent at most 40, without what ASH-S drops."""
    values = numbers(row)
    largest = sorted(values, reverse=True)[: max(1, len(row) - round(quantile * len(row)))]
    kept = [value if value >= largest[-1] else EXACT.mpf(0) for value in values] if method == "ash_s" else values
    whole, part = EXACT.fsum(values), EXACT.fsum(kept if method == "ash_s" else largest)
    growth = EXACT.exp(min(whole / part, 40)) if part > 0 else EXACT.mpf(1)
    return [value * growth for value in kept]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [20, pytest.param(400, marks=pytest.mark.long)])
def test_shaped_features_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    """A sum of n terms is off by some units of its last place, and its exponent by as many times its size, at most 40.

    In half precision the result is rounded to that, and what is larger than its largest number becomes that.
    """
    tried("numerics", "rows of extreme features, each shaped in two ways and clipped", 2 * trials)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    own, highest = torch.finfo(dtype), 4 if dtype == torch.float16 else 18
    methods: dict[str, Callable[..., Tensor]] = {"ash_s": ash_s, "scale": scale}

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=trials, suppress_health_check=list(HealthCheck)
    )
    @given(features=extreme_rows(rows=2, width=9, highest=highest), quantile=st.sampled_from(QUANTILES))
    def check(features: Tensor, quantile: float) -> None:
        features = features.abs().to(dtype)
        for name, method in methods.items():
            found = method(features, quantile=quantile)
            assert found.dtype == dtype
            for row, values in zip(features.tolist(), found.tolist(), strict=True):
                for value, exact in zip(values, exact_shaped(row, name, quantile), strict=True):
                    target = min(exact, EXACT.mpf(own.max))
                    allowed = (400 * unit + own.eps) * target + 2 * own.tiny
                    assert abs(value - target) <= allowed, (name, row, value, float(target))
        threshold = float(features.double().median())
        assert react(features, threshold=threshold).tolist() == [
            [min(value, threshold) for value in row] for row in features.tolist()
        ]

    check()


@pytest.mark.reliability
@pytest.mark.parametrize("method", [ash_s, scale])
@pytest.mark.parametrize("size", [1e36, 1e37, 3e38])
def test_what_float32_cannot_hold_is_refused_and_float64_holds_it(
    tried: Tried, method: Callable[..., Tensor], size: float
) -> None:
    tried("numerics", "rows of features too large to be shaped in float32")
    features = torch.linspace(0.9, 1.1, 40).expand(2, 40) * size
    with pytest.raises(NonFiniteError, match=r"`features` must be finite and small enough.*give them in float64"):
        method(features)
    assert bool(method(features.double()).isfinite().all())


@pytest.mark.reliability
def test_detectors_refuse_features_too_large_to_be_shaped_or_for_a_threshold(tried: Tried) -> None:
    tried("numerics", "rows of features too large to be shaped in float32", 2)
    features, weight = torch.rand(30, 40), torch.full((3, 40), 1e-6)
    detector = OPNP(ratios=Ratios(), shaping=SCALE()).fit_features(features, weight=weight, bias=None)
    with pytest.raises(NonFiniteError, match="scale the features down, or give them in float64"):
        detector.score_features(torch.full((2, 40), 3e38))
    wide = torch.full((30, 4), 1e60, dtype=torch.float64)
    with pytest.raises(
        NonFiniteError, match=r"threshold of ReAct must lie within float32, .*got inf at the quantile 0\.9\."
    ):
        OPNP(ratios=Ratios(), shaping=ReAct(0.9)).fit_features(wide, weight=torch.rand(3, 4).double(), bias=None)

"""Sensitivities of extreme features, logits and weights against double loops at 50 digits."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import (
    Precision,
    Sensitivity,
    SensitivitySum,
    neuron_sensitivity,
    weight_sensitivity,
)
from opnp.errors import NonFiniteError
from tests.reliability.numerics_world import (
    DTYPES,
    TEMPERATURES,
    Sensitivities,
    exact_sensitivities,
    extreme_rows,
    heads,
    relative_error,
)
from tests.tried import Tried

LEAST = 1e-290
LEAST_OF_FLOAT32 = 2.0**-120
"""Terms of float32 products below it times the factor beside them may be lost."""
ERRORS: dict[Precision, float] = {"float32": 1e-5, "float64": 1e-12}
CANCELLED: dict[Precision, float] = {"float32": 2e-7, "float64": 2.0**-43}
"""Errors relative to the terms p_i |W_ij|, of which a gradient for a neuron may be a small part."""


def require_exact(
    found: Sensitivity,
    exact: Sensitivities,
    precision: Precision,
    *,
    features: Tensor,
    weight: Tensor,
    temperature: float,
) -> None:
    """Compare all three, entry by entry."""
    allowed, is_float32 = ERRORS[precision], precision == "float32" and 0.1 <= temperature <= 1000
    least = LEAST_OF_FLOAT32 if is_float32 else LEAST
    by_feature = [least * (1 + value) for value in features.double().abs().amax(0).tolist()]
    by_neuron = [least * (1 + value) for value in weight.double().abs().amax(0).tolist()]
    for row, of_class in zip(found.weight.tolist(), exact.weight, strict=True):
        for value, expected, lost in zip(row, of_class, by_feature, strict=True):
            assert abs(value - expected) <= allowed * expected + lost
    for value, expected, lost in zip(found.neuron_aggregate.tolist(), exact.aggregate, by_feature, strict=True):
        assert abs(value - expected) <= allowed * expected + lost
    cancelled = CANCELLED["float32" if is_float32 else "float64"]
    for value, expected, terms, lost in zip(
        found.neuron_gradient.tolist(), exact.gradient, exact.terms, by_neuron, strict=True
    ):
        assert abs(value - expected) <= allowed * expected + cancelled * terms + lost


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sensitivities_of_named_extremes_are_exact(tried: Tried, temperature: float, precision: Precision) -> None:
    tried("numerics", "heads whose sensitivities are compared with exact ones", len(heads()))
    for name, case in heads().items():
        head = case.to(torch.float32)
        logits = torch.nn.functional.linear(head.features, head.weight, head.bias)
        found = SensitivitySum.from_batch(
            head.features, logits, head.weight, temperature=temperature, precision=precision
        ).mean()
        try:
            exact = exact_sensitivities(head.features, logits, head.weight, temperature)
            require_exact(found, exact, precision, features=head.features, weight=head.weight, temperature=temperature)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [12, pytest.param(150, marks=pytest.mark.long)])
def test_sensitivities_of_any_numbers_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    tried("numerics", "heads whose sensitivities are compared with exact ones", trials)
    highest = 4 if dtype == torch.float16 else 36  # float32 holds the sum of three
    precision: Precision = "float64" if dtype == torch.float64 else "float32"

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=trials, suppress_health_check=list(HealthCheck)
    )
    @given(
        features=extreme_rows(rows=3, width=3, highest=highest),
        logits=extreme_rows(rows=3, width=3, highest=highest),
        weight=extreme_rows(rows=3, width=3, highest=highest),
        temperature=st.sampled_from(TEMPERATURES),
    )
    def check(features: Tensor, logits: Tensor, weight: Tensor, temperature: float) -> None:
        features, logits, weight = features.to(dtype), logits.to(dtype), weight.to(dtype)
        found = SensitivitySum.from_batch(features, logits, weight, temperature=temperature).mean()
        exact = exact_sensitivities(features, logits, weight, temperature)
        require_exact(found, exact, precision, features=features, weight=weight, temperature=temperature)
        plain = weight_sensitivity(features, logits, temperature=temperature)
        for reading in ("gradient", "aggregate"):
            neurons = neuron_sensitivity(features, logits, weight, reading=reading, temperature=temperature)
            wide = Sensitivity(plain, neurons, neurons, count=3)
            target = exact.gradient if reading == "gradient" else exact.aggregate
            for value, expected, terms in zip(wide.neuron(reading).tolist(), target, exact.terms, strict=True):
                slack = CANCELLED["float64"] * terms if reading == "gradient" else 0
                assert abs(value - expected) <= 1e-12 * expected + slack + LEAST
        for row, of_class in zip(plain.tolist(), exact.weight, strict=True):
            for value, expected in zip(row, of_class, strict=True):
                assert relative_error(value, expected) < 1e-12 or 0 <= value < LEAST > expected

    check()


@pytest.mark.reliability
@pytest.mark.parametrize("place", ["features", "logits", "weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named(tried: Tried, place: str, value: float) -> None:
    tried("numerics", "NaN and infinite values put into features, logits and weights")
    parts = {"features": torch.rand(5, 3), "logits": torch.rand(5, 4), "weight": torch.rand(4, 3)}
    parts[place][1, 2] = value
    total = SensitivitySum.from_batch(*parts.values())
    message = r"^\d+ sensitivities are NaN or infinite: features, logits or weights"
    with pytest.raises(NonFiniteError, match=message):
        total.mean()


@pytest.mark.reliability
def test_products_beyond_float64_are_named(tried: Tried) -> None:
    tried("numerics", "sums too large for float64")
    features = torch.full((1000, 3), 1e306, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="scale the features down"):
        weight_sensitivity(features, torch.zeros(1000, 2, dtype=torch.float64))

"""Shaping: zeros, negative features, dtypes and errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import ASHS, SCALE, ReAct, Shaping, ash_s, react, scale, shaped
from opnp.core.shaping import shaped_rows
from opnp.errors import InputTypeError, NonFiniteError, OptionError, ShapeError, SignedFeaturesWarning

FEATURES = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("shaping", "expected"),
    [
        (None, FEATURES),
        (ReAct(), react(FEATURES, threshold=1.5)),
        (ASHS(), ash_s(FEATURES, quantile=0.9)),
        (SCALE(), scale(FEATURES, quantile=0.85)),
        (ASHS(0.6), ash_s(FEATURES, quantile=0.6)),
        (SCALE(0.6), scale(FEATURES, quantile=0.6)),
    ],
    ids=repr,
)
def test_a_shaping_is_its_function_and_its_graph(shaping: Shaping | None, expected: Tensor) -> None:
    before = FEATURES.clone()
    assert shaped(FEATURES, shaping, threshold=1.5).equal(expected)
    assert shaped_rows(FEATURES, shaping, threshold=1.5).equal(expected)
    assert FEATURES.equal(before)
    assert ReAct().quantile == 0.9


def test_a_graph_refuses_nothing() -> None:
    assert shaped_rows(FEATURES.half(), SCALE()).dtype == torch.float32
    assert shaped_rows(-FEATURES, SCALE()).equal(-FEATURES)
    assert not bool(shaped_rows(torch.full((1, 5), 3e38), SCALE()).isfinite().any())
    with pytest.raises(OptionError, match="ReAct needs its `threshold`"):
        shaped_rows(FEATURES, ReAct())


@pytest.mark.parametrize(("method", "quantile"), [(ash_s, 0.9), (ash_s, 0.95), (scale, 0.85)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_stays_itself_rounded_once_and_rows_of_zeros_stay_zeros(
    method: Callable[..., Tensor], quantile: float, dtype: torch.dtype
) -> None:
    """Nearly equal features have the largest factor, up to exp(1 / (1 - quantile)); sums are float32 at least."""
    features = torch.cat([torch.linspace(0.9, 1.1, 300).expand(2, -1), torch.zeros(1, 300), FEATURES.repeat(1, 15)]).to(
        dtype
    )
    found = method(features, quantile=quantile)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert not bool(found[2].any())
    wide = torch.promote_types(dtype, torch.float32)
    largest = torch.finfo(dtype).max
    assert torch.equal(found, method(features.to(wide), quantile=quantile).clamp_max(largest).to(dtype))
    assert bool(method(torch.zeros(1, 8, dtype=dtype)).eq(0).all())


@pytest.mark.parametrize(
    ("method", "name"), [(lambda h: react(h, threshold=1.0), "ReAct"), (ash_s, "ASH-S"), (scale, "SCALE")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_features_warn_and_stay_finite(
    method: Callable[[Tensor], Tensor], name: str, dtype: torch.dtype
) -> None:
    """The rows: any signs, all negative, a sum of the largest close to zero from above, a sum of exactly zero."""
    features = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    features[1] = -features[1].abs()
    features[2], features[2, 0] = -1e-30, 1e-30
    features[3] = torch.tensor([1.0, -1.0] * 5, dtype=dtype)
    with pytest.warns(SignedFeaturesWarning, match=rf"^{name} assumes features that are not negative"):
        found = method(features)
    assert bool(found.isfinite().all())
    assert found.shape == features.shape


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 90, float("nan")])
def test_quantiles_outside_their_range_are_refused(value: float) -> None:
    for method in (ReAct, ASHS, SCALE):
        with pytest.raises(OptionError, match=rf"`{method.__name__}\.quantile` must be a fraction in \(0, 1\)"):
            method(value)
    for function in (ash_s, scale):
        with pytest.raises(OptionError, match=r"`quantile` must be a fraction in \(0, 1\)"):
            function(FEATURES, quantile=value)


def test_what_is_no_matrix_of_features_is_refused() -> None:
    for function in (lambda h: react(h, threshold=1.0), ash_s, scale):
        with pytest.raises(ShapeError, match=r"`features` must have shape \(batch, features\), got \(6, 20, 1, 1\)"):
            function(FEATURES[:, :, None, None])
        with pytest.raises(InputTypeError, match="`features` must be floating point"):
            function(FEATURES.long())


def test_react_without_a_threshold_and_unknown_shapings_are_refused() -> None:
    with pytest.raises(OptionError, match="ReAct needs its `threshold`"):
        shaped(FEATURES, ReAct())
    unknown: Any = "ash_s"
    with pytest.raises(OptionError, match=r"`shaping` must be None, ReAct\(\.\.\.\).*got 'ash_s'"):
        shaped(FEATURES, unknown)


@pytest.mark.parametrize("method", [ash_s, scale])
def test_a_row_whose_sum_overflows_is_refused_although_its_largest_do_not(method: Callable[..., Tensor]) -> None:
    with pytest.raises(NonFiniteError, match=r"the sum of a row is not finite in torch\.float32"):
        method(torch.full((1, 10), 1e38), quantile=0.9)


def test_shaped_features_that_overflow_are_refused_but_for_half_precision() -> None:
    """The factor is exp(40) here."""
    with pytest.raises(NonFiniteError, match=r"a shaped feature is not finite in torch\.float32"):
        scale(torch.full((1, 1000), 1e30), quantile=0.99)
    assert bool(scale(torch.full((1, 1000), 1e30, dtype=torch.float64), quantile=0.99).isfinite().all())
    with pytest.warns(SignedFeaturesWarning, match="SCALE assumes"):
        found = scale(torch.tensor([[6e4, 6e4, -6e4]]).half(), quantile=1 / 3)
    assert found.tolist() == [[65504.0, 65504.0, -65504.0]]


def test_a_row_without_a_positive_sum_stays_as_it_is() -> None:
    with pytest.warns(SignedFeaturesWarning, match="SCALE assumes"):
        assert scale(torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), quantile=0.5).tolist() == [[-1.0, -2.0], [-3.0, 0.0]]


@pytest.mark.parametrize(
    "ask", [scale, ash_s, lambda h: react(h, threshold=1), lambda h: shaped(h, ReAct(), threshold=1)]
)
def test_warnings_point_to_the_caller(ask: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(SignedFeaturesWarning) as caught:
        ask(-FEATURES)
    assert caught[0].filename == __file__

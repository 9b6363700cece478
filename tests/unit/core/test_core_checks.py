"""Argument checks: what they let through and what they say."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from opnp.core.checks import checked_fraction, checked_matrix, checked_scores, checked_temperature, require_finite
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_floating_matrix_passes_as_it_is(dtype: torch.dtype) -> None:
    matrix = torch.zeros(0, 3, dtype=dtype)
    assert checked_matrix(matrix, name="features", axes="(batch, features)") is matrix


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0]], InputTypeError, r"`features` must be a torch\.Tensor of shape \(batch, features\), got list"),
        (torch.ones(2, 3, 7), ShapeError, r"got \(2, 3, 7\)\. Pool the trailing axes first"),
        (torch.ones(2, 3, 7, 7), ShapeError, r"got \(2, 3, 7, 7\)\. Pool the trailing axes.*flatten\(2\)\.mean\(2\)"),
        (torch.ones(3), ShapeError, r"got \(3,\)\. For one sample add the batch axis: `features\[None\]`"),
        (torch.tensor(1.0), ShapeError, r"must have shape \(batch, features\), got \(\)\.$"),
        (torch.ones(2, 3, dtype=torch.int64), InputTypeError, r"got torch\.int64\. Convert it: `features\.float\(\)`"),
        (torch.ones(2, 3, dtype=torch.complex64), InputTypeError, r"floating point, got torch\.complex64"),
    ],
)
def test_what_is_no_matrix_is_told_how_to_become_one(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_matrix(value, name="features", axes="(batch, features)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_scores_become_float64_and_infinite_ones_stay(dtype: torch.dtype) -> None:
    assert checked_scores(torch.tensor([1, 0]).to(dtype), name="scores").dtype == torch.float64
    assert checked_scores(torch.tensor([-math.inf, math.inf]), name="scores").tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], InputTypeError, r"`scores` must be a real torch\.Tensor of shape \(batch,\), got list"),
        (torch.ones(2, dtype=torch.complex64), InputTypeError, r"`scores` must be a real torch\.Tensor"),
        (torch.ones(2, 1), ShapeError, r"`scores` must have shape \(batch,\), got \(2, 1\)"),
        (torch.tensor(1.0), ShapeError, r"`scores` must have shape \(batch,\), got \(\)"),
        (torch.ones(0), EmptyDataError, r"`scores` is empty"),
        (torch.tensor([1.0, math.nan, math.nan]), NonFiniteError, r"`scores` holds 2 NaN of 3 scores"),
    ],
)
def test_what_are_no_scores_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_scores(value, name="scores")


@pytest.mark.parametrize("value", [1, 0.01, 1000.0, np.float64(2.0), np.float32(0.5), Fraction(1, 2)])
def test_any_positive_real_is_a_temperature(value: Any) -> None:
    found = checked_temperature(value)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1", None, torch.tensor(1.0)])
def test_anything_else_is_no_temperature(value: Any) -> None:
    with pytest.raises(OptionError, match=r"`temperature` must be a positive finite number, got"):
        checked_temperature(value)


@pytest.mark.parametrize("value", [0.005, np.float64(0.95), Fraction(1, 4), 1 - 2**-53])
def test_fractions_come_back_as_floats(value: Any) -> None:
    found = checked_fraction(value, name="keep")
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, True, False, "0.5", None])
@pytest.mark.parametrize("is_zero_allowed", [True, False])
def test_what_is_no_fraction_is_refused(value: Any, is_zero_allowed: bool) -> None:
    interval = r"\[0, 1\)" if is_zero_allowed else r"\(0, 1\)"
    with pytest.raises(OptionError, match=rf"`keep` must be a fraction in {interval}, got {value!r}"):
        checked_fraction(value, name="keep", is_zero_allowed=is_zero_allowed)


def test_zero_passes_only_where_it_is_allowed() -> None:
    assert checked_fraction(0, name="share", is_zero_allowed=True) == 0.0
    with pytest.raises(OptionError, match=r"`keep` must be a fraction in \(0, 1\), got 0\.0\.$"):
        checked_fraction(0.0, name="keep")


def test_a_percentage_is_told_its_fraction() -> None:
    with pytest.raises(OptionError, match=r"got 95\. Percentages are written as fractions: 0\.95\."):
        checked_fraction(95, name="keep")
    with pytest.raises(OptionError, match=r"got 1\.5\. Percentages are written as fractions: 0\.015\.$"):
        checked_fraction(1.5, name="keep")
    for no_percentage in (1, 100):
        with pytest.raises(OptionError, match=rf"got {no_percentage}\.$"):
            checked_fraction(no_percentage, name="keep")


def test_finite_values_pass_without_a_word() -> None:
    require_finite(torch.zeros(2, 3), name="features")
    require_finite(torch.zeros(0, 3), name="features")
    require_finite(torch.ones(3, dtype=torch.int64), name="features")
    require_finite(torch.full((3, 4), 3e38), name="features")  # their sum is infinite, they are not


def test_broken_rows_are_counted_and_named() -> None:
    features = torch.zeros(9, 2, 2)
    features[1, 0, 1] = math.nan
    features[3] = -math.inf
    message = r"`features` in batch 3 must be finite, got 1 NaN and 4 infinite entries in 2 of 9 rows \(rows 1, 3\)"
    with pytest.raises(NonFiniteError, match=message):
        require_finite(features, name="features", where=" in batch 3")


def test_a_long_list_of_broken_entries_is_cut() -> None:
    with pytest.raises(NonFiniteError, match=r"7 NaN and 0 infinite .* in 7 of 8 rows \(rows 1, 2, 3, 4, 5, \.\.\.\)"):
        require_finite(torch.tensor([0.0] + [math.nan] * 7), name="scores")
    with pytest.raises(NonFiniteError, match=r"in 6 of 6 rows \(rows 0, 1, 2, 3, 4, \.\.\.\)"):
        require_finite(torch.full((6,), math.inf), name="scores")
    with pytest.raises(NonFiniteError, match=r"\(rows 0, 1, 2, 3, 4\)\."):
        require_finite(torch.full((5,), math.inf), name="scores")


def test_rows_of_a_part_are_numbered_from_its_first() -> None:
    with pytest.raises(NonFiniteError, match=r"in 1 of 3 rows \(rows 1002\)"):
        require_finite(torch.tensor([[0.0], [0.0], [math.nan]]), name="features", first_row=1000)


def test_temperatures_are_those_that_float32_can_be_divided_by() -> None:
    assert [checked_temperature(value) for value in (1e-30, 1e30)] == [1e-30, 1e30]
    for value in (0.99e-30, 1.01e30):
        with pytest.raises(OptionError, match=r"`temperature` must lie between 1e-30 and 1e\+30, got"):
            checked_temperature(value)

"""Argument checks: what they let through and what they say."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opnp.core.checks import (
    checked_fraction,
    checked_head,
    checked_matrix,
    checked_scores,
    checked_temperature,
    require_finite,
)
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError


def matrix(value: Any) -> Tensor:
    return checked_matrix(value, name="features", axes="(batch, features)")


def scores(value: Any) -> Tensor:
    return checked_scores(value, name="scores")


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (matrix, [[1.0]], InputTypeError, r"`features` must be a torch\.Tensor of shape \(batch, features\), got list"),
        (matrix, torch.ones(2, 3, 7), ShapeError, r"got \(2, 3, 7\)\. Pool the trailing axes.*flatten\(2\)\.mean\(2\)"),
        (matrix, torch.ones(3), ShapeError, r"got \(3,\)\. For one sample add the batch axis: `features\[None\]`"),
        (matrix, torch.tensor(1.0), ShapeError, r"must have shape \(batch, features\), got \(\)\.$"),
        (matrix, torch.ones(2, 3).long(), InputTypeError, r"got torch\.int64\. Convert it: `features\.float\(\)`"),
        (matrix, torch.ones(2, 3, dtype=torch.complex64), InputTypeError, r"floating point, got torch\.complex64"),
        (scores, [1.0], InputTypeError, r"`scores` must be a real torch\.Tensor of shape \(batch,\), got list"),
        (scores, torch.ones(2, dtype=torch.complex64), InputTypeError, r"`scores` must be a real torch\.Tensor"),
        (scores, torch.ones(2, 1), ShapeError, r"`scores` must have shape \(batch,\), got \(2, 1\)"),
        (scores, torch.ones(0), EmptyDataError, r"`scores` is empty"),
        (scores, torch.tensor([1.0, math.nan, math.nan]), NonFiniteError, r"`scores` holds 2 NaN of 3 scores"),
    ],
)
def test_what_is_no_matrix_or_no_scores_is_told_why(
    check: Callable[[Any], Tensor], value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check(value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_matrices_stay_scores_become_float64_and_infinite_ones_stay(dtype: torch.dtype) -> None:
    half = torch.zeros(0, 3, dtype=torch.float16)
    assert matrix(half) is half
    assert scores(torch.tensor([1, 0]).to(dtype)).dtype == torch.float64
    assert scores(torch.tensor([-math.inf, math.inf])).tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("value", [1, 1e-30, 1e30, np.float64(2.0), np.float32(0.5), Fraction(1, 2)])
def test_any_positive_real_is_a_temperature(value: Any) -> None:
    found = checked_temperature(value)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1", None, torch.tensor(1.0), 0.99e-30, 1.01e30])
def test_anything_else_is_no_temperature(value: Any) -> None:
    is_small_or_large = isinstance(value, float) and 0 < value < math.inf
    message = "lie between 1e-30 and 1e\\+30" if is_small_or_large else "be a positive finite number"
    with pytest.raises(OptionError, match=rf"`temperature` must {message}, got"):
        checked_temperature(value)


@pytest.mark.parametrize("value", [0.005, np.float64(0.95), Fraction(1, 4), 1 - 2**-53])
def test_fractions_come_back_as_floats(value: Any) -> None:
    found = checked_fraction(value, name="keep")
    assert type(found) is float
    assert found == value
    assert checked_fraction(0, name="share", is_zero_allowed=True) == 0.0


@pytest.mark.parametrize(
    ("value", "hint"),
    [(value, "") for value in (0, 1, 1.0, -0.1, math.nan, math.inf, True, False, "0.5", None, 100)]
    + [(95, r" Percentages are written as fractions: 0\.95\."), (1.5, r" Percentages .* fractions: 0\.015\.")],
)
def test_what_is_no_fraction_is_refused(value: Any, hint: str) -> None:
    with pytest.raises(OptionError, match=rf"`keep` must be a fraction in \(0, 1\), got {value!r}\.{hint}$"):
        checked_fraction(value, name="keep")
    if value != 0 or value is False:
        with pytest.raises(OptionError, match=rf"`keep` must be a fraction in \[0, 1\), got {value!r}\.{hint}$"):
            checked_fraction(value, name="keep", is_zero_allowed=True)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_finite_values_pass_without_a_word(shape: tuple[int, ...]) -> None:
    require_finite(torch.full(shape, 3e38), name="features")  # their sum is infinite, they are not
    require_finite(torch.ones(shape, dtype=torch.int64), name="features")


def test_broken_rows_are_counted_and_named() -> None:
    features = torch.zeros(9, 2, 2)
    features[1, 0, 1] = math.nan
    features[3] = -math.inf
    message = r"`features` in batch 3 must be finite, got 1 NaN and 4 infinite entries in 2 of 9 rows \(rows 1, 3\)"
    with pytest.raises(NonFiniteError, match=message):
        require_finite(features, name="features", where=" in batch 3")
    with pytest.raises(NonFiniteError, match=r"in 2 of 9 rows \(rows 1001, 1003\)"):
        require_finite(features, name="features", first_row=1000)
    for count, rows in ((5, r"0, 1, 2, 3, 4"), (6, r"0, 1, 2, 3, 4, \.\.\.")):
        with pytest.raises(NonFiniteError, match=rf"in {count} of {count} rows \(rows {rows}\)"):
            require_finite(torch.full((count,), math.inf), name="scores")


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        (torch.ones(1, 3), None, ShapeError, "`weight` must have a row for each of at least two classes"),
        (torch.ones(3), None, ShapeError, r"`weight` must have shape \(classes, features\)"),
        (torch.ones(2, 3).long(), None, InputTypeError, "`weight` must be floating point"),
        (torch.full((2, 3), math.nan), None, NonFiniteError, "`weight` must be finite"),
        (torch.ones(2, 3), torch.ones(3), ShapeError, r"`bias` must have shape \(2,\), got \(3,\)"),
        (torch.ones(2, 3), torch.full((2,), math.inf), NonFiniteError, "`bias` must be finite, got 2"),
        (torch.ones(2, 3), torch.ones(2).long(), InputTypeError, "`bias` must be a floating-point .* got torch.int64"),
        (torch.ones(2, 3), [0.0, 0.0], InputTypeError, "`bias` must be a floating-point .* got list"),
    ],
)
def test_what_is_no_head_of_a_classifier_is_told(weight: Any, bias: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_head(weight, bias)
    head = torch.ones(2, 3)
    for accepted in (torch.ones(2), None):
        assert checked_head(head, accepted) == (head, accepted)

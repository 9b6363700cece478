"""Conformal verdicts: messages, dtypes and extreme arguments."""

import math
from typing import Any

import pytest
import torch

from opnp.core import (
    at_least_count,
    conformal_p_value,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
)
from opnp.errors import CalibrationError, EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError

CALIBRATION = torch.arange(1.0, 100.0)


def test_infinite_scores_are_ordered_like_any_other() -> None:
    scores = torch.tensor([-math.inf, math.inf])
    assert conformal_p_value(scores, CALIBRATION).tolist() == [1.0, 0.01]
    assert conformal_p_value(scores, torch.tensor([math.inf])).tolist() == [1.0, 1.0]
    assert is_flagged(scores, CALIBRATION).tolist() == [False, True]
    assert keep_threshold(torch.cat([CALIBRATION, scores]), keep=0.99) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_p_values_are_float64_and_verdicts_boolean(dtype: torch.dtype) -> None:
    scores, calibration = torch.tensor([0, 50, 99, 120]).to(dtype), torch.arange(1, 100).to(dtype)
    assert conformal_p_value(scores, calibration).dtype == torch.float64
    assert conformal_p_value(scores, calibration).tolist() == [1.0, 0.51, 0.02, 0.01]
    assert at_least_count(scores, calibration).dtype == torch.int64
    assert is_flagged(scores, calibration, keep=0.98).tolist() == [False, False, True, True]
    assert is_flagged(scores, calibration, keep=0.98).dtype == torch.bool


def test_a_keep_just_above_the_possible_tells_what_is_needed() -> None:
    message = r"keep=0\.95 needs at least 19 calibration samples, got 18: with fewer no input could ever be flagged"
    for ask in (
        lambda: flagged_rank(18, keep=0.95),
        lambda: keep_threshold(torch.zeros(18), keep=0.95),
        lambda: is_flagged(torch.zeros(1), torch.zeros(18), keep=0.95),
    ):
        with pytest.raises(CalibrationError, match=message):
            ask()
    assert flagged_rank(19, keep=0.95) == 1
    assert keep_threshold(CALIBRATION) == 95.0


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.5, 95, math.nan, True])
def test_keeps_outside_their_range_are_refused(keep: float) -> None:
    for ask in (
        lambda: minimum_samples(keep=keep),
        lambda: flagged_rank(99, keep=keep),
        lambda: keep_threshold(CALIBRATION, keep=keep),
        lambda: is_flagged(CALIBRATION, CALIBRATION, keep=keep),
    ):
        with pytest.raises(OptionError, match=r"`keep` must be a fraction in \(0, 1\)"):
            ask()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(0), EmptyDataError, "is empty"),
        (torch.ones(2, 2), ShapeError, r"must have shape \(batch,\), got \(2, 2\)"),
        (torch.tensor([math.nan]), NonFiniteError, "holds 1 NaN of 1 scores"),
        (1.0, InputTypeError, "got float"),
    ],
)
def test_scores_and_calibration_are_checked(value: Any, error: type[Exception], message: str) -> None:
    for function in (at_least_count, conformal_p_value, is_flagged):
        with pytest.raises(error, match=f"`scores` .*{message}"):
            function(value, CALIBRATION)
        with pytest.raises(error, match=f"`calibration` .*{message}"):
            function(CALIBRATION, value)
    with pytest.raises(error, match=f"`calibration` .*{message}"):
        keep_threshold(value)

"""Conformal verdicts: messages, dtypes and extreme arguments."""

import math
from typing import Any

import pytest
import torch

from opnp.core import (
    at_least_count,
    benjamini_hochberg,
    conformal_p_value,
    discovery_samples,
    fewest_discoveries,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
)
from opnp.core.conformal import ALONE, pool_limits
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


# ------------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(0), EmptyDataError, "`p_values` is empty"),
        (torch.ones(2, 2), ShapeError, r"`p_values` must have shape \(batch,\)"),
        (torch.tensor([0.5, math.nan]), NonFiniteError, "`p_values` holds 1 NaN of 2 scores"),
        (torch.tensor([0.5, 1.5]), OptionError, r"`p_values` must lie in \[0, 1\], got 0\.5 to 1\.5"),
        (torch.tensor([-0.1, math.inf]), OptionError, r"`p_values` must lie in \[0, 1\], got -0\.1 to inf"),
        ([0.5], InputTypeError, "got list"),
    ],
)
def test_p_values_of_a_batch_are_checked(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        benjamini_hochberg(value, fdr=0.1)


@pytest.mark.parametrize("fdr", [0.0, 1.0, 10, math.nan, True])
def test_levels_outside_their_range_are_refused(fdr: float) -> None:
    for ask in (
        lambda: benjamini_hochberg(torch.ones(3), fdr=fdr),
        lambda: discovery_samples(1, tested=3, fdr=fdr),
        lambda: fewest_discoveries(9, tested=3, fdr=fdr),
    ):
        with pytest.raises(OptionError, match=r"`fdr` must be a fraction in \(0, 1\)"):
            ask()
    for count in (0, 4):
        with pytest.raises(OptionError, match=f"`discoveries` must lie in 1 to `tested`, got {count} of 3"):
            discovery_samples(count, tested=3, fdr=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_discoveries_are_boolean_and_a_bound_that_is_met_counts(dtype: torch.dtype) -> None:
    found = benjamini_hochberg(torch.tensor([1, 0, 1]).to(dtype), fdr=0.1)
    assert (found.dtype, found.tolist()) == (torch.bool, [False, True, False])
    for tested in range(1, 200):  # 1/(n + 1) = fdr k / m as fractions, and not always as floats
        p_values = torch.ones(tested, dtype=torch.float64)
        p_values[0] = 1 / (10 * tested)
        assert bool(benjamini_hochberg(p_values, fdr=0.1)[0])
        p_values[0] = 1 / (10 * tested - 1)
        assert not bool(benjamini_hochberg(p_values, fdr=0.1).any())


def test_classes_with_few_samples_are_pooled() -> None:
    for counts, limits in {
        (20, 20): [ALONE, ALONE],
        (40, 30, 12, 9): [ALONE, ALONE, 19, 19],
        (40, 30, 0): [ALONE, ALONE, 30],  # nothing to compare with but the samples of the next class
        (40, 10, 8): [41, 40, 40],  # 18 samples are too few
        (40, 10, 9): [41, 19, 19],  # 19 are enough for one more of their own, and too few with one of another class
        (20, 19): [21, ALONE],
    }.items():
        found = pool_limits(torch.tensor(counts), fewest=19)
        assert (found.dtype, found.tolist()) == (torch.int64, limits), counts

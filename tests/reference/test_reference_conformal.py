"""Conformal p-values and verdicts against loops over exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from opnp.core import (
    at_least_count,
    conformal_p_value,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
)

KEEPS = ["0.9", "0.95", "0.99", "0.949", "0.951", "0.8", "0.7", "0.55", "0.1", "0.05", "0.905"]


def loop_p_value(score: float, calibration: list[float]) -> Fraction:
    return Fraction(1 + sum(other >= score for other in calibration), len(calibration) + 1)


def scores_and_calibration(samples: int) -> tuple[Tensor, Tensor]:
    """Integers, so that scores tie with calibration scores and those with one another."""
    generator = torch.Generator().manual_seed(samples)
    calibration = torch.randint(-50, 50, (samples,), generator=generator).float()
    return torch.cat([torch.arange(-52.0, 53.0), torch.tensor([-torch.inf, torch.inf])]), calibration


@pytest.mark.parametrize("samples", [1, 2, 99, 199, 200, 999, 1000])
def test_p_values_are_counted_shares(samples: int) -> None:
    scores, calibration = scores_and_calibration(samples)
    expected = [loop_p_value(score, calibration.tolist()) for score in scores.tolist()]
    assert conformal_p_value(scores, calibration).tolist() == [float(value) for value in expected]
    assert at_least_count(scores, calibration).tolist() == [int(value * (samples + 1)) - 1 for value in expected]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("samples", [99, 199, 200, 999, 1000])
def test_verdict_and_threshold_are_the_exact_comparison(samples: int, keep: str) -> None:
    scores, calibration = scores_and_calibration(samples)
    share = 1 - Fraction(keep)
    expected = [loop_p_value(score, calibration.tolist()) <= share for score in scores.tolist()]
    assert is_flagged(scores, calibration, keep=float(keep)).tolist() == expected

    place = math.ceil(Fraction(keep) * (samples + 1))
    assert keep_threshold(calibration, keep=float(keep)) == sorted(calibration.tolist())[place - 1]


@pytest.mark.parametrize("keep", KEEPS)
def test_minimum_samples_is_the_first_that_can_flag(keep: str) -> None:
    share = 1 - Fraction(keep)
    fewest = next(n for n in range(1, 1000) if Fraction(1, n + 1) <= share)
    assert minimum_samples(keep=float(keep)) == fewest
    ranks = [rank for rank in range(fewest + 2) if Fraction(rank, fewest + 1) <= share]
    assert flagged_rank(fewest, keep=float(keep)) == max(ranks)

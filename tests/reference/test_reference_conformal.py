"""Conformal p-values against loops over exact fractions; tests/property has the verdicts."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from opnp.core import at_least_count, conformal_p_value


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

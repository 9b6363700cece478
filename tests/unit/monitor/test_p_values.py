"""The monitor on p-values of a file: how many calibration samples they tell of, and which it refuses."""

import pytest
import torch
from torch import Tensor

from opnp.core import conformal_p_value
from opnp.errors import CalibrationError, OpnpError, ShapeError
from opnp.monitor.p_values import drift_of_p_values, inferred_calibration_samples


def quantised(samples: int, rows: int, *, digits: int | None = None) -> Tensor:
    """Return p-values of so many calibration samples, rounded to some digits."""
    ranks = torch.randint(1, samples + 2, (rows,), generator=torch.Generator().manual_seed(0))
    p_values = ranks.double() / (samples + 1)
    return p_values if digits is None else p_values.round(decimals=digits)


@pytest.mark.parametrize("samples", [19, 98, 400, 1999, 2000, 65_535])
def test_the_number_of_calibration_samples_is_told_by_their_p_values(samples: int) -> None:
    assert inferred_calibration_samples(quantised(samples, 150)) == samples


@pytest.mark.parametrize(
    ("p_values", "message"),
    [
        (quantised(98, 99), "99 p-values are too few"),
        (torch.ones(200, dtype=torch.float64), "do not tell the number"),
        (torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64), "do not tell the number"),
        (quantised(300, 400, digits=4), "multiples of 1/10000: they were rounded, or .* `--calibration-samples 9999`"),
        (quantised(999, 400), "If it is the latter, say so: `--calibration-samples 999`"),
    ],
)
def test_a_number_that_cannot_be_told_is_asked_for(p_values: Tensor, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        inferred_calibration_samples(p_values)


def test_a_power_of_ten_is_taken_where_it_is_said() -> None:
    p_values = quantised(999, 400)
    assert drift_of_p_values(-p_values, p_values, calibration_samples=999).samples == 400


@pytest.mark.parametrize(
    ("scores", "p_values", "samples", "error", "message"),
    [
        ([1.0, 2.0], [0.3, 0.2], 8, CalibrationError, "not those of 8 calibration samples"),
        ([1.0, 2.0], [0.33, 0.17], 11, CalibrationError, "multiples of 1/12 to the last digit.* not rounded; or give"),
        ([1.0, 2.0], [0.2, 0.3], 9, CalibrationError, "do not fall as the scores rise"),
        ([1.0, 1.0], [0.2, 0.3], 9, CalibrationError, "do not fall as the scores rise"),
        ([1.0, 2.0], [1.1, 0.3], 9, CalibrationError, "not those of 9 calibration samples"),
        ([1.0], [0.3, 0.2], 9, ShapeError, "must be of one length, got 1 and 2"),
        (None, quantised(299, 200), 599, CalibrationError, "599 calibration samples: all are multiples of 1/300"),
    ],
)
def test_p_values_that_do_not_belong_to_the_scores_or_the_number_are_refused(
    scores: list[float] | None, p_values: list[float] | Tensor, samples: int, error: type[OpnpError], message: str
) -> None:
    values = torch.as_tensor(p_values, dtype=torch.float64)
    with pytest.raises(error, match=message):
        drift_of_p_values(-values if scores is None else torch.tensor(scores), values, calibration_samples=samples)


def test_groups_are_ranked_each_among_its_own_whatever_order_they_come_in() -> None:
    """Each group is ranked by itself, so that what is added to all scores of one changes nothing."""
    generator = torch.Generator().manual_seed(0)
    calibrations = [torch.rand(count, generator=generator).double() for count in (30, 99)]
    groups = torch.randint(0, 2, (200,), generator=generator)
    scores = torch.rand(200, generator=generator).double()
    p_values = torch.empty_like(scores)
    for group, calibration in enumerate(calibrations):
        p_values[groups == group] = conformal_p_value(scores[groups == group], calibration)
    samples = torch.tensor([30, 99])[groups]
    whole = drift_of_p_values(scores, p_values, calibration_samples=samples, groups=groups)
    apart = drift_of_p_values(scores + 10 * groups, p_values, calibration_samples=samples, groups=groups)
    assert whole == apart
    one = drift_of_p_values(scores, p_values * 0 + 1, calibration_samples=99)
    assert one == drift_of_p_values(scores, p_values * 0 + 1, calibration_samples=99, groups=torch.zeros(200).long())
    with pytest.raises(CalibrationError, match="of 30, 99 calibration samples: they are not of one detector"):
        drift_of_p_values(scores, p_values, calibration_samples=samples)

"""Online p-values: ties at infinity, the random numbers that break ties, and what is refused."""

import math

import pytest
import torch

from opnp.errors import EmptyDataError, NonFiniteError, ShapeError
from opnp.monitor.online_p_values import (
    RANKS,
    STREAM_TIES,
    cell_of_scores,
    earlier_counts,
    numbered_uniforms,
    online_p_value,
    ordered_keys,
)


def test_infinite_scores_tie_with_infinite_calibration_scores() -> None:
    calibration = torch.tensor([-math.inf, 0.0, math.inf], dtype=torch.float64)
    keys = ordered_keys(calibration, torch.full((3,), 0.5), values=calibration)
    judged = torch.tensor([math.inf, math.inf, 1.0, -math.inf, -math.inf])
    ties = torch.tensor([0.9, 0.1, 0.5, 0.9, 0.1])
    assert cell_of_scores(ordered_keys(judged, ties, values=calibration), keys).tolist() == [0, 1, 1, 2, 3]


def test_an_equal_key_lies_below_the_score() -> None:
    assert cell_of_scores(torch.tensor([2, 5, 7, 8]), torch.tensor([3, 5, 7])).tolist() == [3, 1, 0, 0]


def test_later_p_values_count_all_samples_before() -> None:
    found = online_p_value(torch.tensor([1, 4]), torch.tensor([0, 2]), torch.tensor([0.5]), calibration=7, start=12)
    assert found.tolist() == pytest.approx([1.5 / 20, 5.5 / 21], rel=1e-15)


def test_uniform_numbers_lie_strictly_between_0_and_1_and_look_uniform() -> None:
    numbers = numbered_uniforms(0, 100_000, seed=0, sequence=RANKS)
    assert 0 < float(numbers.min()) < 1e-4
    assert 1 - 1e-4 < float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 170  # 1e-5 above, 99 degrees of freedom
    for seed, sequence in ((0, STREAM_TIES), (1, RANKS)):
        assert not torch.equal(numbers, numbered_uniforms(0, 100_000, seed=seed, sequence=sequence))


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="`scores` holds 1 NaN of 2 scores"):
        ordered_keys(torch.tensor([math.nan, 0.0]), torch.full((2,), 0.5), values=torch.zeros(1).double())
    with pytest.raises(ShapeError, match="same leading axes"):
        earlier_counts(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(EmptyDataError, match="at least one calibration sample"):
        online_p_value(torch.zeros(1), torch.zeros(1), torch.tensor([0.5]), calibration=0, start=0)

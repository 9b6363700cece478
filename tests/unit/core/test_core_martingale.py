"""Online p-values and the test martingale: extreme arguments, ties at infinity, and what is refused."""

import math

import pytest
import torch

from opnp.core import online_p_values
from opnp.core.martingale import MartingaleState, alarm_threshold, bin_of_p_value, bin_widths, log_wealth
from opnp.core.online_p_values import (
    cell_of_scores,
    earlier_counts,
    numbered_uniforms,
    online_p_value,
    ordered_keys,
)
from opnp.errors import EmptyDataError, NonFiniteError, OptionError, ShapeError


def test_wealth_that_no_float_could_hold_has_a_logarithm() -> None:
    wealth, _ = log_wealth(torch.zeros(2000), MartingaleState.start())
    assert bool(wealth.isfinite().all())
    assert float(wealth[-1]) > math.log(1.7e308)


def test_wealth_never_falls_below_what_is_aside() -> None:
    wealth, _ = log_wealth(torch.full((2000,), 0.5), MartingaleState.start(), is_one_sided=True)
    aside = [-math.log(1 + math.log1p(samples / 100)) for samples in range(1, 2001)]
    assert bool((wealth >= torch.tensor(aside, dtype=torch.float64) - 1e-12).all())


def test_no_p_value_leaves_the_state_as_it_is() -> None:
    wealth, state = log_wealth(torch.empty(0), MartingaleState.start())
    assert wealth.shape == (0,)
    assert (state.samples, int(state.recent.sum())) == (0, 0)


def test_a_state_counts_two_windows_of_each_stream_and_begins_empty() -> None:
    state = MartingaleState.start(3)
    assert (state.samples, state.log_active.shape, state.recent.shape) == (0, (3, 6), (3, 2, 10))
    assert bool(state.log_active.isneginf().all())
    assert int(state.recent.sum()) == 0


def test_pieces_that_cross_windows_anywhere_go_on_to_the_same_bits() -> None:
    p_values = torch.rand(1100, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 1.5
    whole, last = log_wealth(p_values, MartingaleState.start())
    state, found = MartingaleState.start(), []
    for piece in p_values.split([1, 255, 300, 212, 332]):
        wealth, state = log_wealth(piece, state)
        found.append(wealth)
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(state.log_active, last.log_active)
    tenths = (p_values * 10).long()
    expected = [torch.bincount(part, minlength=10).tolist() for part in (tenths[768:1024], tenths[1024:])]
    assert state.recent.tolist() == last.recent.tolist() == expected
    assert state.samples == 1100


def test_several_streams_are_each_by_itself() -> None:
    p_values = torch.rand(3, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together, state = log_wealth(p_values, MartingaleState.start(3))
    for number, row in enumerate(p_values):
        alone, last = log_wealth(row, MartingaleState.start())
        assert torch.allclose(together[number], alone, rtol=0, atol=1e-12)
        assert torch.equal(state.recent[number], last.recent)


def test_bins_hold_their_left_edge() -> None:
    edges = torch.tensor([0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0], dtype=torch.float64)
    assert bin_of_p_value(edges).tolist() == [0, 1, 2, 11, 20, 21, 21]
    below = torch.nextafter(edges[1:-1], torch.zeros(1, dtype=torch.float64))
    assert bin_of_p_value(below).tolist() == [0, 1, 10, 19, 20]
    assert float(bin_widths().sum()) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 5.0])
def test_levels_outside_0_to_1_are_refused(level: float) -> None:
    with pytest.raises(OptionError, match="`level` must be a fraction"):
        alarm_threshold(level)


def test_p_values_that_are_none_are_refused() -> None:
    with pytest.raises(OptionError, match=r"must lie in \[0, 1\], got -0.5 to 0.5"):
        log_wealth(torch.tensor([-0.5, 0.5]), MartingaleState.start())
    with pytest.raises(OptionError, match=r"must lie in \[0, 1\], got 0.5 to 1.5"):
        log_wealth(torch.tensor([0.5, 1.5]), MartingaleState.start())
    with pytest.raises(NonFiniteError, match="`p_values` holds 1 NaN"):
        log_wealth(torch.tensor([math.nan, 0.5]), MartingaleState.start())


def test_infinite_scores_tie_with_infinite_calibration_scores() -> None:
    calibration = torch.tensor([-math.inf, 0.0, math.inf], dtype=torch.float64)
    keys = ordered_keys(calibration, torch.full((3,), 0.5), values=calibration)
    judged = torch.tensor([math.inf, math.inf, 1.0, -math.inf, -math.inf])
    ties = torch.tensor([0.9, 0.1, 0.5, 0.9, 0.1])
    assert cell_of_scores(ordered_keys(judged, ties, values=calibration), keys).tolist() == [0, 1, 1, 2, 3]


def test_an_equal_key_lies_below_the_score() -> None:
    assert cell_of_scores(torch.tensor([2, 5, 7, 8]), torch.tensor([3, 5, 7])).tolist() == [3, 1, 0, 0]


def test_scores_without_an_order_have_no_key() -> None:
    with pytest.raises(NonFiniteError, match="`scores` holds 1 NaN of 2 scores"):
        ordered_keys(torch.tensor([math.nan, 0.0]), torch.full((2,), 0.5), values=torch.zeros(1).double())


def test_words_are_read_as_the_integers_with_the_same_bits() -> None:
    words = {0: 0, 2**63 - 1: 2**63 - 1, 2**63: -(2**63), 2**64 - 1: -1, 2**64 + 5: 5, -1: -1}
    assert {word: online_p_values._signed(word) for word in words} == words


def test_uniform_numbers_lie_strictly_between_0_and_1_and_look_uniform() -> None:
    numbers = numbered_uniforms(0, 100_000, seed=0)
    assert 0 < float(numbers.min()) < 1e-4
    assert 1 - 1e-4 < float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 170  # 1e-5 above, 99 degrees of freedom
    assert not torch.equal(numbers, numbered_uniforms(0, 100_000, seed=1))


def test_counts_of_other_streams_are_refused() -> None:
    with pytest.raises(ShapeError, match="same leading axes"):
        earlier_counts(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))


def test_later_p_values_count_all_samples_before() -> None:
    found = online_p_value(torch.tensor([1, 4]), torch.tensor([0, 2]), torch.tensor([0.5]), calibration=7, start=12)
    assert found.tolist() == pytest.approx([1.5 / 20, 5.5 / 21], rel=1e-15)


def test_a_stream_needs_a_calibration() -> None:
    with pytest.raises(EmptyDataError, match="at least one calibration sample"):
        online_p_value(torch.zeros(1), torch.zeros(1), torch.tensor([0.5]), calibration=0, start=0)

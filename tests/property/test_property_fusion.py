"""The fusion: what any scores, in any units and any order, have in common."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import fused_score, member_shares, tail_scales, tail_units
from opnp.core.fusion import tail_reason
from opnp.errors import ShapeError

checked = settings(derandomize=True, deadline=None, database=None, max_examples=80)

SEEDS = st.integers(0, 10**6)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def units_of(draw: st.DrawFn) -> Tensor:
    members = draw(st.integers(1, 6))
    row = st.lists(st.floats(-500, 500), min_size=members, max_size=members)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=5)), dtype=torch.float64)


def drawn(seed: int, *, samples: int = 60, members: int = 3) -> Tensor:
    return torch.randn(samples, members, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@checked
@given(units=units_of())
def test_shares_sum_to_1_and_are_exp_of_units_less_the_score(units: Tensor) -> None:
    shares = member_shares(units)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(units)).double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(shares, (units - fused_score(units)[:, None]).exp(), rtol=1e-10, atol=0)


@checked
@given(units=units_of())
def test_the_score_lies_between_the_largest_unit_and_that_plus_log_members(units: Tensor) -> None:
    largest, score = units.amax(1), fused_score(units)
    assert bool((score >= largest).all())
    assert bool((score <= largest + math.log(units.shape[1]) + 1e-12 * (1 + largest.abs())).all())


@checked
@given(units=units_of(), step=st.floats(0, 50), data=st.data())
def test_the_score_and_the_own_share_grow_with_each_member(units: Tensor, step: float, data: st.DataObject) -> None:
    member = data.draw(st.integers(0, units.shape[1] - 1))
    more = units.clone()
    more[:, member] += step
    slack = 1e-12 * (1 + units.abs().amax())
    assert bool((fused_score(more) >= fused_score(units) - slack).all())
    assert bool((fused_score(more) <= fused_score(units) + step + slack).all())
    assert bool((member_shares(more)[:, member] >= member_shares(units)[:, member] * (1 - 1e-9)).all())


@checked
@given(units=units_of(), data=st.data())
def test_the_order_of_members_does_not_matter(units: Tensor, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(units.shape[1])))
    torch.testing.assert_close(fused_score(units[:, order]), fused_score(units), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(member_shares(units[:, order]), member_shares(units)[:, order], rtol=1e-12, atol=1e-300)
    scores = units.repeat(3, 1) + torch.arange(3 * len(units)).double()[:, None]
    assert tail_scales(scores[:, order]).equal(tail_scales(scores)[:, order])
    scales = torch.stack([torch.zeros(units.shape[1]), torch.arange(1.0, units.shape[1] + 1)]).double()
    assert tail_units(scores[:, order], scales[:, order]).equal(tail_units(scores, scales)[:, order])


@checked
@given(seed=SEEDS, factor=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_units_are_the_same_after_a_change_of_scale_and_origin(seed: int, factor: float, shift: float) -> None:
    scores = drawn(seed)
    units = tail_units(scores, tail_scales(scores))
    changed = scores * factor + shift * factor
    torch.testing.assert_close(tail_units(changed, tail_scales(changed)), units, rtol=1e-9, atol=1e-9)


@checked
@given(seed=SEEDS, bad=NOT_FINITE, row=st.integers(0, 59), member=st.integers(0, 2))
def test_a_score_that_is_not_finite_makes_the_fused_one_infinite(seed: int, bad: float, row: int, member: int) -> None:
    scores = drawn(seed)
    scales = tail_scales(scores)
    assert tail_units(scores, scales.float()).dtype == torch.float32
    whole, shares = fused_score(tail_units(scores, scales)), member_shares(tail_units(scores, scales))
    scores[row, member] = bad
    units = tail_units(scores, scales)
    assert units[row, member].item() == math.inf
    found = fused_score(units)
    assert found[row].item() == math.inf
    assert member_shares(units)[row].tolist() == [float(place == member) for place in range(3)]
    is_other = torch.arange(60) != row
    assert found[is_other].equal(whole[is_other])
    assert member_shares(units)[is_other].equal(shares[is_other])
    scores[row] = bad
    assert member_shares(tail_units(scores, scales))[row].tolist() == [pytest.approx(1 / 3)] * 3


@checked
@given(seed=SEEDS, bad=NOT_FINITE, count=st.integers(0, 20))
def test_scores_that_are_not_finite_count_as_the_largest(seed: int, bad: float, count: int) -> None:
    scores = drawn(seed, samples=501)
    scores[:count] = bad
    expected = scores.clone()
    expected[:count] = 1e9
    assert tail_scales(scores).equal(tail_scales(expected))


@checked
@given(seed=SEEDS, samples=st.integers(5, 400), lost=st.integers(0, 12), bad=NOT_FINITE)
def test_a_member_is_left_out_where_more_than_one_percent_is_lost(
    seed: int, samples: int, lost: int, bad: float
) -> None:
    assume(lost <= samples)
    scores = drawn(seed, samples=samples, members=1)
    scores[:lost] = bad
    reason = tail_reason(scores[:, 0], tail_scales(scores)[:, 0])
    if 100 * lost > samples:
        assert reason == f"{lost} of {samples} of its scores of training samples are not finite"
    else:
        assert reason is None


@checked
@given(seed=SEEDS, value=st.sampled_from([0.0, 1.0, -1e6, 3e-20, 1e30]), spread=st.sampled_from([0.0, 1e-9, 1e-3, 1.0]))
def test_a_member_is_left_out_where_its_scores_are_nearly_equal(seed: int, value: float, spread: float) -> None:
    scores = value + (abs(value) or 1.0) * spread * drawn(seed, members=1)
    reason = tail_reason(scores[:, 0], tail_scales(scores)[:, 0])
    is_equal = spread == 0 or (spread < 1e-6 and value != 0)
    assert reason == ("its scores of training samples are nearly all equal" if is_equal else None)


def test_the_bounds_of_the_reasons() -> None:
    """One of a hundred may be lost; a spread of a millionth is still equal."""
    scores = torch.arange(100.0)
    scores[7] = torch.nan
    assert tail_reason(scores, torch.tensor([1.0, 2.0])) is None
    for scales, is_equal in {
        (0.0, 1e-30): False,
        (1.0, 1 + 9e-7): True,
        (1.0, 1 + 2e-6): False,
        (-1.0, -1.0): True,
    }.items():
        pair = torch.tensor(scales, dtype=torch.float64)
        assert (tail_reason(scores, pair) is not None) is is_equal
        assert (tail_reason(scores, -pair.flip(0)) is not None) is is_equal


@pytest.mark.parametrize("shape", [(0, 3), (5,), (2, 2, 2)])
def test_scales_need_a_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"`scores` must have shape \(samples, members\) with a sample, got \("):
        tail_scales(torch.zeros(shape))

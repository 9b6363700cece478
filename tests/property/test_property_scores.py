"""Scores to verdicts: conformal guarantees, exact comparisons, metrics, and the fusion of any scores in any units."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import (
    PositiveClass,
    aupr,
    auroc,
    conformal_p_value,
    expected_calibration_error,
    flagged_rank,
    fpr_at_tpr,
    fused_score,
    is_flagged,
    keep_threshold,
    member_shares,
    minimum_samples,
    reliability,
    tail_scales,
    tail_units,
)
from opnp.core.fusion import tail_reason
from opnp.errors import ShapeError

checked = settings(derandomize=True, deadline=None, database=None, max_examples=100)

KEEPS = st.one_of(
    st.sampled_from(["0.9", "0.95", "0.99", "0.949", "0.951", "0.5", "0.05"]),
    st.integers(1, 9999).map(lambda n: f"0.{n:04d}"),
)
SCORES = st.lists(st.integers(-20, 20), min_size=2, max_size=40).map(lambda values: torch.tensor(values).double())


@checked
@given(scores=SCORES, keep=KEEPS)
def test_leaving_one_out_flags_no_more_than_promised(scores: Tensor, keep: str) -> None:
    """Each of n + 1 exchangeable scores is as likely to be the new one. Over all of them, the share with a p-value of
    at most a is at most a, for every a: this is the guarantee, without randomness."""
    rests = [torch.cat([scores[:index], scores[index + 1 :]]) for index in range(len(scores))]
    pairs = [(scores[index : index + 1], rest) for index, rest in enumerate(rests)]
    ranks = [round(conformal_p_value(score, rest).item() * len(scores)) for score, rest in pairs]
    assert all(sum(other <= rank for other in ranks) <= rank for rank in range(1, len(scores) + 1))

    if len(scores) > minimum_samples(keep=float(keep)):
        flagged = sum(bool(is_flagged(score, rest, keep=float(keep))) for score, rest in pairs)
        assert Fraction(flagged, len(scores)) <= 1 - Fraction(keep)


@checked
@given(scores=SCORES, samples=st.integers(1, 400), keep=KEEPS, seed=st.integers(0, 2**31))
@example(scores=torch.arange(-60.0, 60.0), samples=199, keep="0.9", seed=0)
@example(scores=torch.arange(-60.0, 60.0), samples=999, keep="0.95", seed=0)
@example(scores=torch.arange(-60.0, 60.0), samples=999, keep="0.949", seed=0)
def test_verdict_threshold_and_exact_p_value_agree(scores: Tensor, samples: int, keep: str, seed: int) -> None:
    assume(samples >= minimum_samples(keep=float(keep)))
    calibration = torch.randint(-50, 50, (samples,), generator=torch.Generator().manual_seed(seed)).double() / 5
    verdict = is_flagged(scores, calibration, keep=float(keep))
    assert verdict.equal(scores > keep_threshold(calibration, keep=float(keep)))
    exact = [Fraction(1 + int((calibration >= score).sum()), samples + 1) <= 1 - Fraction(keep) for score in scores]
    assert verdict.tolist() == exact


@checked
@given(keep=KEEPS)
def test_from_the_minimum_on_and_no_sooner_something_is_flagged(keep: str) -> None:
    fewest = minimum_samples(keep=float(keep))
    largest = torch.tensor([torch.inf])
    assert bool(is_flagged(largest, torch.zeros(fewest), keep=float(keep)))
    assert flagged_rank(fewest, keep=float(keep)) == math.floor((1 - Fraction(keep)) * (fewest + 1))
    assert Fraction(1, fewest) > 1 - Fraction(keep)


@checked
@given(scores=SCORES, calibration=SCORES, choose=st.data())
def test_p_values_fall_with_the_score_and_ignore_the_order(
    scores: Tensor, calibration: Tensor, choose: st.DataObject
) -> None:
    shuffled = calibration[torch.tensor(choose.draw(st.permutations(range(len(calibration)))))]
    ordered = conformal_p_value(scores.sort().values, shuffled)
    assert bool((ordered.diff() <= 0).all())
    assert ordered.equal(conformal_p_value(scores, calibration).sort(descending=True).values)
    assert bool((ordered >= 1 / (len(calibration) + 1)).all())
    assert bool((ordered <= 1).all())


POSITIVE: st.SearchStrategy[PositiveClass] = st.sampled_from(["id", "ood"])
TPRS = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)
MONOTONE: list[Callable[[Tensor], Tensor]] = [
    lambda scores: 3 * scores - 7,
    lambda scores: scores**3,
    lambda scores: torch.exp(scores / 4),
    lambda scores: scores.float(),
    lambda scores: scores.long(),
    lambda scores: torch.where(scores == 20, torch.inf, torch.where(scores == -20, -torch.inf, scores)),
    lambda scores: torch.where(scores == 0, -0.0, scores),
]


@checked
@given(inside=SCORES, outside=SCORES, positive=POSITIVE, tpr=TPRS)
def test_monotone_maps_leave_rank_metrics_alone(
    inside: Tensor, outside: Tensor, positive: PositiveClass, tpr: float
) -> None:
    area, precision = auroc(inside, outside), aupr(inside, outside, positive=positive)
    share = fpr_at_tpr(inside, outside, tpr=tpr, positive=positive)
    for monotone in MONOTONE:
        low, high = monotone(inside), monotone(outside)
        assert auroc(low, high) == area
        assert aupr(low, high, positive=positive) == precision
        assert fpr_at_tpr(low, high, tpr=tpr, positive=positive) == share


@checked
@given(inside=SCORES, outside=SCORES, tpr=TPRS)
def test_swapped_classes_mirror_every_metric(inside: Tensor, outside: Tensor, tpr: float) -> None:
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1, abs=1e-15)
    assert auroc(inside, outside) == auroc(-outside, -inside)
    assert aupr(inside, outside, positive="id") == aupr(-outside, -inside, positive="ood")
    assert fpr_at_tpr(inside, outside, tpr=tpr) == fpr_at_tpr(-outside, -inside, tpr=tpr, positive="ood")


@checked
@given(inside=SCORES, outside=SCORES, tprs=st.tuples(TPRS, TPRS), positive=POSITIVE, choose=st.data())
def test_order_does_not_matter_and_fpr_grows_with_tpr(
    inside: Tensor, outside: Tensor, tprs: tuple[float, float], positive: PositiveClass, choose: st.DataObject
) -> None:
    low, high = sorted(tprs)
    shuffled = inside[torch.tensor(choose.draw(st.permutations(range(len(inside)))))]
    assert auroc(shuffled, outside) == auroc(inside, outside)
    assert aupr(shuffled, outside, positive=positive) == aupr(inside, outside, positive=positive)
    smaller = fpr_at_tpr(shuffled, outside, tpr=low, positive=positive)
    larger = fpr_at_tpr(inside, outside, tpr=high, positive=positive)
    assert 0 <= smaller <= larger <= 1


@checked
@given(level=st.integers(-5, 5), n=st.integers(1, 30), m=st.integers(1, 30), tpr=TPRS)
def test_a_constant_score_knows_nothing(level: int, n: int, m: int, tpr: float) -> None:
    inside, outside = torch.full((n,), float(level)), torch.full((m,), float(level))
    assert auroc(inside, outside) == 0.5
    assert aupr(inside, outside, positive="id") == pytest.approx(n / (n + m), abs=1e-15)
    assert aupr(inside, outside, positive="ood") == pytest.approx(m / (n + m), abs=1e-15)
    assert fpr_at_tpr(inside, outside, tpr=tpr) == fpr_at_tpr(inside, outside, tpr=tpr, positive="ood") == 1.0


@checked
@given(samples=st.integers(1, 60), classes=st.integers(1, 6), bins=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_reliability_is_a_partition_of_the_samples(samples: int, classes: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64) * 4
    probabilities, labels = logits.softmax(1), torch.randint(0, classes, (samples,), generator=generator)
    table = reliability(probabilities, labels, bins=bins)

    assert int(table.count.sum()) == samples
    assert float(table.confidence @ table.count.double()) == pytest.approx(float(probabilities.amax(1).sum()))
    assert float(table.accuracy @ table.count.double()) == pytest.approx(int((logits.argmax(1) == labels).sum()))
    assert table.confidence[table.count == 0].tolist() == [0.0] * int((table.count == 0).sum())
    edges = torch.arange(bins + 1).double() / bins
    is_filled = table.count > 0
    assert bool((table.confidence[is_filled] <= edges[1:][is_filled] + 1e-12).all())
    assert bool((table.confidence[is_filled] >= edges[:-1][is_filled] - 1e-12).all())

    error = expected_calibration_error(probabilities, labels, bins=bins)
    overall = abs(float(probabilities.amax(1).mean()) - float((logits.argmax(1) == labels).double().mean()))
    assert overall - 1e-12 <= error <= 1


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

"""Conformal verdicts: the guarantee itself, and the exactness of every comparison."""

import math
from fractions import Fraction

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import conformal_p_value, flagged_rank, is_flagged, keep_threshold, minimum_samples

checked = settings(derandomize=True, deadline=None, database=None, max_examples=120)

KEEPS = st.one_of(
    st.sampled_from(["0.9", "0.95", "0.99", "0.949", "0.951", "0.5", "0.05"]),
    st.integers(1, 9999).map(lambda n: f"0.{n:04d}"),
)
SCORES = st.lists(st.integers(-9, 9), min_size=2, max_size=40).map(lambda values: torch.tensor(values).double())


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
    verdict, threshold = (
        is_flagged(scores, calibration, keep=float(keep)),
        keep_threshold(calibration, keep=float(keep)),
    )
    assert verdict.equal(scores > threshold)
    assert threshold == sorted(calibration.tolist())[math.ceil(Fraction(keep) * (samples + 1)) - 1]
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

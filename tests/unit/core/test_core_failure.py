"""Failure detection: hand-made cases, pair by pair, and what is refused."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import auroc, failure_auroc
from opnp.errors import EmptyDataError, NonFiniteError, OptionError, ShapeError

checked = settings(derandomize=True, deadline=None, database=None, max_examples=100)

SCORES = st.lists(st.integers(-6, 6), min_size=2, max_size=25).map(lambda values: torch.tensor(values).double())


def loop_failure(scores: list[float], wrong: list[float]) -> float:
    """Pair by pair, a sample never with itself."""
    above, pairs = 0.0, 0.0
    for k, (high, is_wrong) in enumerate(zip(scores, wrong, strict=True)):
        for other, (low, may_be_wrong) in enumerate(zip(scores, wrong, strict=True)):
            if k != other:
                weight = is_wrong * (1 - may_be_wrong)
                above += weight * ((high > low) + (high == low) / 2)
                pairs += weight
    return above / pairs


@checked
@given(scores=SCORES, seed=st.integers(0, 2**31))
def test_it_counts_weighted_pairs(scores: Tensor, seed: int) -> None:
    wrong = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = loop_failure(scores.tolist(), wrong.tolist())
    assert failure_auroc(scores, wrong) == pytest.approx(expected, abs=1e-12)


@checked
@given(scores=SCORES, seed=st.integers(0, 2**31))
def test_with_certainty_it_is_the_plain_auroc(scores: Tensor, seed: int) -> None:
    wrong = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) < 0.5
    assume(bool(wrong.any()) and not bool(wrong.all()))
    assert failure_auroc(scores, wrong.double()) == pytest.approx(auroc(scores[~wrong], scores[wrong]), abs=1e-12)


@checked
@given(scores=SCORES, seed=st.integers(0, 2**31))
def test_only_the_order_of_the_scores_counts(scores: Tensor, seed: int) -> None:
    wrong = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed))
    found = failure_auroc(scores, wrong)
    assert failure_auroc(torch.exp(scores / 3), wrong) == pytest.approx(found, abs=1e-12)
    assert failure_auroc(-scores, wrong) == pytest.approx(1 - found, abs=1e-12)


def test_equal_doubt_about_all_is_a_coin() -> None:
    assert failure_auroc(torch.arange(9.0), torch.full((9,), 0.2)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_without_a_pair_there_is_no_answer(certain: float) -> None:
    with pytest.raises(EmptyDataError, match="no pair of a wrong and a right answer"):
        failure_auroc(torch.arange(3.0), torch.full((3,), certain))


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.inf])
def test_a_probability_is_one(probability: float) -> None:
    with pytest.raises(OptionError, match=r"`error_probabilities` must lie in \[0, 1\]"):
        failure_auroc(torch.arange(2.0), torch.tensor([0.5, probability]))


def test_shapes_and_values_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"the shape of `scores`, \(3,\), got \(2,\)"):
        failure_auroc(torch.arange(3.0), torch.ones(2))
    with pytest.raises(NonFiniteError, match="`error_probabilities` holds 1 NaN"):
        failure_auroc(torch.arange(2.0), torch.tensor([0.5, math.nan]))
    with pytest.raises(NonFiniteError, match="`scores` holds 1 NaN"):
        failure_auroc(torch.tensor([1.0, math.nan]), torch.tensor([0.5, 0.5]))

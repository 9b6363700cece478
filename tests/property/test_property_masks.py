"""Masks: counts, order and warnings for any shares and any ties."""

import warnings

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import keep_mask
from opnp.errors import RatioError, RatioWarning

checked = settings(derandomize=True, deadline=None, database=None, max_examples=200)

SHARES = st.one_of(
    st.sampled_from([0.0, 0.005, 0.05, 0.1, 0.25, 0.3, 0.35, 0.5, 0.7]), st.floats(0, 1, exclude_max=True)
)
RANKINGS = st.lists(st.integers(0, 8), min_size=1, max_size=60).map(lambda row: torch.tensor([row]).double())


def removed(ranking: Tensor, *, lowest: float = 0.0, highest: float = 0.0) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        return ~keep_mask(ranking, lowest=lowest, highest=highest)


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
@example(ranking=torch.ones(1, 5).double(), lowest=0.5, highest=0.5)
@example(ranking=torch.ones(1, 50).double(), lowest=0.01, highest=0.03)
def test_counts_errors_and_warnings_follow_pythons_round(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    bottom, top = round(lowest * entries), round(highest * entries)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mask = keep_mask(ranking, lowest=lowest, highest=highest)
        except RatioError:
            assert bottom + top >= entries
        else:
            assert bottom + top < entries
            assert int((~mask).sum()) == bottom + top
    silent = (lowest > 0 and bottom == 0) + (highest > 0 and top == 0)
    assert [entry.category for entry in caught] == [RatioWarning] * silent


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
def test_lowest_and_highest_are_disjoint_and_in_order(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    assume(round(lowest * entries) + round(highest * entries) < entries)
    bottom, top = removed(ranking, lowest=lowest), removed(ranking, highest=highest)
    both = removed(ranking, lowest=lowest, highest=highest)

    assert not bool((bottom & top).any())
    assert both.equal(bottom | top)
    kept = ranking[~both]
    assert bool((ranking[bottom] <= kept.min()).all())
    assert bool((ranking[top] >= kept.max()).all())


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
def test_masks_depend_on_the_order_alone(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    assume(round(lowest * entries) + round(highest * entries) < entries)
    plain = removed(ranking, lowest=lowest, highest=highest)
    for monotone in (2 * ranking - 5, ranking.exp(), ranking.float(), ranking * 1e-200):
        assert removed(monotone, lowest=lowest, highest=highest).equal(plain)


@checked
@given(ranking=RANKINGS, smaller=SHARES, larger=SHARES)
def test_a_larger_share_removes_what_a_smaller_one_does(ranking: Tensor, smaller: float, larger: float) -> None:
    """A changed share gives another mask at once: nothing is remembered between calls."""
    smaller, larger = sorted([smaller, larger])
    assume(round(larger * ranking.shape[1]) < ranking.shape[1])
    less, more = removed(ranking, lowest=smaller), removed(ranking, lowest=larger)
    assert bool((more | ~less).all())
    assert int(more.sum() - less.sum()) == round(larger * ranking.shape[1]) - round(smaller * ranking.shape[1])

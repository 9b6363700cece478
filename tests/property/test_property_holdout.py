"""Class holdout: what holds for any labels, shares and logits."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import SCORE_NAMES, ScoreName
from opnp.core.holdout import class_draws, holdout_auroc
from opnp.errors import EmptyDataError

checked = settings(derandomize=True, deadline=None, database=None, max_examples=100)

SHARES = st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4).map(tuple)
SEEDS = st.integers(0, 2**31)
SCORES: st.SearchStrategy[ScoreName] = st.sampled_from(SCORE_NAMES)
SHIFT_FREE: st.SearchStrategy[ScoreName] = st.sampled_from(["msp", "entropy", "gen"])


@st.composite
def labels_of_some_classes(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Labels of at least two of three or more classes, some classes perhaps without a sample."""
    classes = draw(st.integers(3, 30))
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=2, max_size=60)))
    assume(len(labels.unique()) > 1)
    return labels, classes


def problem(seed: int, *, samples: int = 60, classes: int = 7, draws: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and draws."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % classes
    return logits, labels, class_draws(labels, classes, shares=(0.3, 0.6), draws=draws, seed=seed % 1000)


@checked
@given(given_labels=labels_of_some_classes(), shares=SHARES, draws=st.integers(1, 12), seed=SEEDS)
def test_draws_are_distinct_and_have_samples_on_both_sides(
    given_labels: tuple[Tensor, int], shares: tuple[float, ...], draws: int, seed: int
) -> None:
    labels, classes = given_labels
    try:
        kept = class_draws(labels, classes, shares=shares, draws=draws, seed=seed)
    except EmptyDataError:
        assume(False)
    assert kept.dtype == torch.bool
    assert kept.shape[1] == classes
    assert 1 <= len(kept) <= draws
    assert len(kept.unique(dim=0)) == len(kept)
    assert bool((kept.sum(1) >= 2).all())
    assert bool((~kept).any(1).all())
    inside = kept[:, labels]
    assert bool(inside.any(1).all())
    assert bool((~inside).any(1).all())


@checked
@given(classes=st.integers(3, 30), shares=SHARES, draws=st.integers(1, 12), seed=SEEDS)
def test_with_samples_of_every_class_there_is_always_a_draw_of_the_share_asked_for(
    classes: int, shares: tuple[float, ...], draws: int, seed: int
) -> None:
    kept = class_draws(torch.arange(classes), classes, shares=shares, draws=draws, seed=seed)
    for index, row in enumerate(kept):
        asked = round(shares[index % len(shares)] * classes)
        assert int((~row).sum()) == min(max(asked, 1), classes - 2)


@checked
@given(given_labels=labels_of_some_classes(), shares=SHARES, seed=SEEDS)
def test_the_seed_alone_decides(given_labels: tuple[Tensor, int], shares: tuple[float, ...], seed: int) -> None:
    labels, classes = given_labels
    try:
        first = class_draws(labels, classes, shares=shares, draws=6, seed=seed)
    except EmptyDataError:
        assume(False)
    torch.rand(3)
    assert torch.equal(class_draws(labels, classes, shares=shares, draws=6, seed=seed), first)
    shuffled = labels[torch.randperm(len(labels))].to(torch.int32)
    assert torch.equal(class_draws(shuffled, classes, shares=shares, draws=6, seed=seed), first)


def test_another_seed_gives_other_draws() -> None:
    drawn = {str(class_draws(torch.arange(20), 20, shares=(0.5,), draws=4, seed=seed).tolist()) for seed in range(10)}
    assert len(drawn) == 10


@checked
@given(seed=SEEDS, score=SCORES, choose=st.data())
def test_a_permutation_of_the_classes_changes_nothing(seed: int, score: ScoreName, choose: st.DataObject) -> None:
    logits, labels, kept = problem(seed)
    order = torch.tensor(choose.draw(st.permutations(range(logits.shape[1]))))
    renamed = order.argsort()[labels]
    expected = holdout_auroc(logits, labels, kept, score=score).tolist()
    assert holdout_auroc(logits[:, order], renamed, kept[:, order], score=score).tolist() == pytest.approx(expected)


@checked
@given(seed=SEEDS, choose=st.data())
def test_order_of_samples_and_of_draws_does_not_matter(seed: int, choose: st.DataObject) -> None:
    logits, labels, kept = problem(seed)
    rows = torch.tensor(choose.draw(st.permutations(range(len(logits)))))
    draws = torch.tensor(choose.draw(st.permutations(range(len(kept)))))
    found = holdout_auroc(logits[rows], labels[rows], kept[draws])
    assert torch.equal(found, holdout_auroc(logits, labels, kept)[draws])


@checked
@given(seed=SEEDS, score=SHIFT_FREE)
def test_a_shift_of_a_samples_logits_is_seen_by_the_energy_alone(seed: int, score: ScoreName) -> None:
    """The softmax knows differences only; the energy also knows how large logits are."""
    logits, labels, kept = problem(seed)
    shift = 3 * torch.randn(len(logits), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name in (score, "energy", "max_logit"):
        before = holdout_auroc(logits, labels, kept, score=name).tolist()
        after = holdout_auroc(logits + shift, labels, kept, score=name).tolist()
        assert (after == pytest.approx(before)) == (name == score)


@checked
@given(seed=SEEDS, shift=st.integers(-50, 50))
def test_one_shift_for_all_samples_and_a_matching_temperature_keep_every_order(seed: int, shift: int) -> None:
    logits, labels, kept = problem(seed)
    expected = holdout_auroc(logits, labels, kept).tolist()
    assert holdout_auroc(logits + shift, labels, kept).tolist() == pytest.approx(expected)
    assert holdout_auroc(4 * logits, labels, kept, temperature=4).tolist() == pytest.approx(expected)


@checked
@given(seed=SEEDS)
def test_turned_logits_turn_the_largest_one_round(seed: int) -> None:
    """Reversed scores have one minus the AUROC: with a single class kept twice the score is that one logit."""
    logits, labels, _ = problem(seed, classes=3)
    logits[:, 1] = logits[:, 0]
    kept = torch.tensor([[True, True, False]])
    found = holdout_auroc(logits, labels, kept) + holdout_auroc(-logits, labels, kept)
    assert found.tolist() == pytest.approx([1.0])

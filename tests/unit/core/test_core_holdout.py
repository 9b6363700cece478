"""Class holdout: hand-made cases, few classes, and what is refused."""

from typing import Any

import pytest
import torch

from opnp.core.holdout import class_draws, holdout_auroc
from opnp.errors import EmptyDataError, InputTypeError, OptionError, ShapeError


def test_three_classes_have_three_draws_and_no_more() -> None:
    kept = class_draws(torch.arange(3), 3, shares=(0.4, 0.5, 0.6, 0.7), draws=16)
    assert sorted(kept.tolist()) == [[False, True, True], [True, False, True], [True, True, False]]


def test_four_classes_have_six_draws_of_two() -> None:
    kept = class_draws(torch.arange(4), 4, shares=(0.4, 0.5, 0.6, 0.7), draws=16)
    assert kept.sum(1).tolist() == [2] * 6


@pytest.mark.parametrize(("classes", "labels"), [(2, [0, 1, 0, 1]), (1, [0, 0])])
def test_fewer_than_three_classes_have_no_draw(classes: int, labels: list[int]) -> None:
    message = rf"at least two classes, and three classes in all: got {classes} classes, {classes} of them with samples"
    with pytest.raises(EmptyDataError, match=message):
        class_draws(torch.tensor(labels), classes, shares=(0.5,), draws=4)


def test_samples_of_one_class_have_nothing_to_be_told_from() -> None:
    with pytest.raises(EmptyDataError, match="got 9 classes, 1 of them with samples"):
        class_draws(torch.full((50,), 4), 9, shares=(0.5,), draws=4)


def test_without_samples_there_is_no_draw() -> None:
    with pytest.raises(EmptyDataError, match="got 9 classes, 0 of them with samples"):
        class_draws(torch.empty(0, dtype=torch.int64), 9, shares=(0.5,), draws=4)


def test_two_classes_with_samples_are_always_on_different_sides() -> None:
    kept = class_draws(torch.tensor([2, 7, 7]), 10, shares=(0.4, 0.6), draws=8)
    assert len(kept) == 8
    assert bool((kept[:, 2] != kept[:, 7]).all())


def test_shares_are_taken_in_turn() -> None:
    kept = class_draws(torch.arange(100), 100, shares=(0.25, 0.5, 0.9), draws=7)
    assert (~kept).sum(1).tolist() == [25, 50, 90, 25, 50, 90, 25]


def test_the_seed_is_0_unless_told_and_the_common_generator_has_no_say() -> None:
    labels = torch.arange(100)
    torch.manual_seed(5)
    found = class_draws(labels, 100, shares=(0.3, 0.6), draws=4)
    torch.manual_seed(6)
    assert torch.equal(found, class_draws(labels, 100, shares=(0.3, 0.6), draws=4, seed=0))
    assert not torch.equal(found, class_draws(labels, 100, shares=(0.3, 0.6), draws=4, seed=1))


@pytest.mark.parametrize(("share", "left_out"), [(0.001, 1), (0.999, 8)])
def test_at_least_one_class_goes_and_two_stay(share: float, left_out: int) -> None:
    assert (~class_draws(torch.arange(10), 10, shares=(share,), draws=3)).sum(1).tolist() == [left_out] * 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 40.0, True, "0.4"])
def test_a_share_is_a_fraction(share: Any) -> None:
    with pytest.raises(OptionError, match=r"`shares` must be a fraction in \(0, 1\)"):
        class_draws(torch.arange(10), 10, shares=(0.5, share), draws=3)


def test_left_out_samples_that_look_like_nothing_are_found_and_those_that_look_sure_are_not() -> None:
    kept = torch.tensor([[True, True, False], [False, True, True]])
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [5.0, 0.0, 9.0]])
    third_looks_like_first = holdout_auroc(logits, torch.arange(3), kept)
    assert third_looks_like_first.tolist() == [1.0, 1.0]
    logits[2, 0] = 20
    assert holdout_auroc(logits, torch.arange(3), kept).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("logits", "labels", "kept"),
    [
        (torch.zeros(4, 3), torch.zeros(4).long(), torch.ones(1, 4).bool()),
        (torch.zeros(4, 3), torch.zeros(4).long(), torch.ones(3).bool()),
        (torch.zeros(4, 3), torch.zeros(5).long(), torch.ones(1, 3).bool()),
        (torch.zeros(4, 3), torch.zeros(4, 1).long(), torch.ones(1, 3).bool()),
        (torch.zeros(3), torch.zeros(3).long(), torch.ones(1, 3).bool()),
    ],
)
def test_shapes_that_do_not_fit(logits: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"`kept` must be \(draws, classes\) and `labels` \(batch,\) for `logits`"):
        holdout_auroc(logits, labels, kept)


@pytest.mark.parametrize("labels", [[0, 1, 5], [-1, 0, 1]])
def test_labels_are_classes_of_the_head(labels: list[int]) -> None:
    with pytest.raises(OptionError, match="`labels` must lie in 0 to 4 for 5 classes"):
        class_draws(torch.tensor(labels), 5, shares=(0.5,), draws=3)


def test_draws_are_boolean() -> None:
    with pytest.raises(InputTypeError, match=r"`kept` must be boolean.*got torch[.]int64"):
        holdout_auroc(torch.eye(3), torch.arange(3), torch.tensor([[1, 1, 0]]))


@pytest.mark.parametrize("label", [0, 2])
def test_a_draw_with_one_side_alone_is_refused(label: int) -> None:
    with pytest.raises(EmptyDataError, match="is empty"):
        holdout_auroc(torch.eye(3), torch.full((3,), label), torch.tensor([[True, True, False]]))

"""Cuts among sensitivities that were lost: refused, and only those."""

import pytest
import torch
from torch import Tensor

from opnp.core import Scope, Sensitivity
from opnp.core.underflow import require_known_neurons, require_known_weights
from opnp.errors import RatioError

WEIGHTS = torch.tensor([[4.0, 3.0, 0.0, 1.0], [2.0, 1.0, 0.0, 5.0], [0.0, 1e-300, 0.0, 1e-310]], dtype=torch.float64)
"""Three sensitivities of the last class were lost; the third feature is dead."""


def sensitivity(of_weights: Tensor, of_neurons: Tensor | None = None) -> Sensitivity:
    return Sensitivity(
        weight=of_weights,
        neuron_gradient=of_weights[0] if of_neurons is None else of_neurons,
        neuron_aggregate=of_weights.mean(0),
        count=1,
    )


def check(
    lowest: float = 0.0,
    highest: float = 0.0,
    *,
    scope: Scope = "layer",
    weights: Tensor = WEIGHTS,
    temperature: float = 0.125,
) -> None:
    require_known_weights(sensitivity(weights), lowest=lowest, highest=highest, scope=scope, temperature=temperature)


@pytest.mark.parametrize("entries", [0, 6, 7, 11])
def test_cuts_beside_what_was_lost_are_known(entries: int) -> None:
    """Six entries are dead or lost."""
    check(lowest=entries / 12)
    check(highest=(12 - entries) / 12 if entries else 0.0)


@pytest.mark.parametrize("entries", [1, 3, 5])
def test_cuts_among_what_was_lost_are_refused(entries: int) -> None:
    with pytest.raises(
        RatioError, match=r"^`w_min` = .* cuts among 6 of 12 .* or give a ratio of 0 or of at least 0\.5\.$"
    ):
        check(lowest=entries / 12)
    with pytest.raises(
        RatioError, match=r"^`w_max` = .* cuts among 6 of 12 .* or give a ratio of 0 or of at most 0\.5\.$"
    ):
        check(highest=(12 - entries) / 12)


def test_the_message_names_temperature_and_remedy() -> None:
    with pytest.raises(
        RatioError, match=r"too small for float64 \(1e-295\).*at `temperature` = 0\.125\. Raise the temp"
    ):
        check(lowest=0.1)


def test_each_class_is_looked_at_by_itself() -> None:
    with pytest.raises(RatioError, match=r"cuts among 4 of 4 .*, or give a ratio of 0\.$"):
        check(lowest=0.25, scope="class")
    check(lowest=0.25, scope="class", weights=WEIGHTS[:2])
    halves = WEIGHTS.clone()
    halves[2, :2] = 1.0
    check(lowest=0.5, scope="class", weights=halves)
    with pytest.raises(RatioError, match=r"cuts among 2 of 4 .* at least 0\.5\.$"):
        check(lowest=0.25, scope="class", weights=halves)


def test_ties_on_paper_are_no_loss() -> None:
    check(lowest=0.1, weights=torch.zeros(3, 4, dtype=torch.float64))
    check(lowest=0.1, weights=torch.ones(3, 4, dtype=torch.float64))


def test_large_features_lose_more() -> None:
    """A probability of 1e-300 is lost, whatever the feature that it is multiplied by."""
    weights = torch.tensor([[1e30, 1e30], [1e-270, 1e-268]], dtype=torch.float64)
    with pytest.raises(RatioError, match="cuts among 3 of 4"):
        check(lowest=0.25, weights=torch.tensor([[1e30, 1e-280], [1e-275, 1e-280]], dtype=torch.float64))
    with pytest.raises(RatioError, match="cuts among 2 of 4"):
        check(lowest=0.25, weights=weights)
    check(lowest=0.5, weights=weights)


HEAD = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, -1.0], [0.0, 2.0, 1.0, 0.0]])
REACHED = torch.tensor([[4.0, 3.0, 1.0, 1.0], [2.0, 1.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def check_neurons(
    of_neurons: list[float],
    lowest: float = 0.0,
    highest: float = 0.0,
    head: Tensor = HEAD,
    temperature: float = 0.125,
) -> None:
    found = sensitivity(REACHED, torch.tensor(of_neurons, dtype=torch.float64))
    require_known_neurons(found, head, lowest=lowest, highest=highest, temperature=temperature)


def test_neurons_of_lost_classes_are_refused_at_the_cut() -> None:
    """The last class was lost, and with it the second and third neuron."""
    with pytest.raises(RatioError, match=r"^`o_min` = 0.25 cuts among 2 of 4 .* at least 0\.5\.$"):
        check_neurons([1.0, 0.0, 0.0, 0.5], lowest=0.25)
    with pytest.raises(RatioError, match=r"^`o_max` = 0.75 cuts among 2 of 4 .* at most 0\.5\.$"):
        check_neurons([1.0, 0.0, 0.0, 0.5], highest=0.75)
    check_neurons([1.0, 0.0, 0.0, 0.5], lowest=0.5)
    check_neurons([1.0, 0.0, 0.0, 0.5])


def test_terms_that_cancel_and_empty_columns_are_no_loss() -> None:
    check_neurons([0.0, 1.0, 1.0, 0.0], lowest=0.25)
    check_neurons([1.0, 0.0, 0.0, 0.5], lowest=0.25, head=HEAD * torch.tensor([1.0, 0.0, 0.0, 1.0]))
    check_neurons([1.0, 2.0, 3.0, 0.5], lowest=0.25)


def test_neurons_of_a_head_that_saw_nothing_are_not_known() -> None:
    dead = sensitivity(torch.zeros(3, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    with pytest.raises(RatioError, match="cuts among 4 of 4"):
        require_known_neurons(dead, HEAD, lowest=0.25, highest=0.0, temperature=0.125)


def test_a_loss_is_below_2_to_the_minus_980_of_the_mean_or_of_1() -> None:
    """The bound is a multiple of a class's whole mean of a feature where that is above 1."""
    for mean, level in ((2.0**-3, 2.0**-980), (2.0**10, 2.0**-970)):
        for lost, is_lost in ((0.9 * level, True), (1.1 * level, False)):
            weights = torch.tensor([[mean, mean], [lost, lost / 4]], dtype=torch.float64)
            weights[1, 1] = lost
            if is_lost:
                with pytest.raises(RatioError, match="cuts among 2 of 4"):
                    check(lowest=0.25, weights=weights)
            else:
                check(lowest=0.25, weights=weights)


def test_the_level_of_one_class_is_not_that_of_another() -> None:
    """The first class lost a weight of its large third feature; the second lost none, though two are smaller."""
    weights = torch.tensor([[1.0, 2.0, 2.0**-950], [2.0**-970, 2.0**-969, 2.0**40]], dtype=torch.float64)
    check(lowest=1 / 3, scope="class", weights=weights)
    lost = torch.tensor([[1.0, 2.0**-945, 2.0**-950], [1.0, 2.0, 2.0**40]], dtype=torch.float64)
    with pytest.raises(RatioError, match="cuts among 2 of 3"):
        check(lowest=1 / 3, scope="class", weights=lost)


def test_large_heads_lose_more_neurons_and_dead_features_none() -> None:
    for factor, level in ((1.0, 2.0**-980), (2.0**10, 2.0**-970)):
        head = HEAD * torch.tensor([1.0, 0.5, 1.0, 1.0]) * factor
        with pytest.raises(RatioError, match="cuts among 2 of 4"):
            check_neurons([factor, 0.9 * level, 0.8 * level, factor], lowest=0.25, head=head)
        check_neurons([factor, 1.1 * level, 1.2 * level, factor], lowest=0.25, head=head)
    weights = REACHED.clone()
    weights[:, 3] = 0  # the last feature is dead
    found = sensitivity(weights, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    require_known_neurons(found, HEAD, lowest=0.25, highest=0.0, temperature=0.125)


@pytest.mark.parametrize(("scope", "lowest"), [("layer", 0.1), ("class", 0.25)])
def test_classes_that_were_lost_as_a_whole_are_ties_from_a_temperature_of_a_fifth_on(
    scope: Scope, lowest: float
) -> None:
    """The last class was: it keeps index order. Of a class that has a share left, the rest is lost as ever."""
    partly = WEIGHTS.clone()
    partly[2, 0] = 2.0**-979 * 6
    check(lowest=lowest, scope=scope, temperature=0.2)
    with pytest.raises(RatioError, match="cuts among"):
        check(lowest=lowest, scope=scope, temperature=0.19)
    with pytest.raises(RatioError, match="cuts among"):
        check(lowest=lowest, scope=scope, weights=partly, temperature=0.2)
    check_neurons([1.0, 0.0, 0.0, 0.5], lowest=0.25, temperature=0.2)
    with pytest.raises(RatioError, match="cuts among 2 of 4"):
        check_neurons([1.0, 0.0, 0.0, 0.5], lowest=0.25, temperature=0.19)


def test_losses_of_several_classes_do_not_add_up() -> None:
    one_each = torch.tensor([[1.0, 2.0, 2.0**-990], [2.0**-990, 1.0, 2.0]], dtype=torch.float64)
    check(lowest=1 / 3, scope="class", weights=one_each)
    with pytest.raises(RatioError, match="cuts among 2 of 6"):
        check(lowest=1 / 6, weights=one_each)


def test_terms_that_cancel_are_no_loss_for_small_features_either() -> None:
    found = sensitivity(REACHED / 64, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    require_known_neurons(found, HEAD, lowest=0.25, highest=0.0, temperature=0.1)

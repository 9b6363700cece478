"""Automatic settings at the edge: tiny heads, late labels, features below zero, heads that never doubt."""

import dataclasses
import warnings

import pytest
import torch
from torch.nn.functional import linear

from opnp import OPNP, Ratios, ReAct
from opnp.detector.criterion import Judge
from opnp.detector.reservoir import Reservoir
from opnp.errors import SignedFeaturesWarning
from tests.unit.detector.tuning_world import World, disturbed_world, inhibited_world, solved_world, spurious_world


@pytest.mark.parametrize("width", [2, 3])
def test_a_head_with_few_inputs_is_tuned_as_far_as_there_is_something_to_remove(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows, others = torch.rand(300, width, generator=generator), torch.rand(300, width, generator=generator)
    weight = torch.randn(12, width, generator=generator)
    detector = OPNP(shaping=None).fit_features(rows, weight=weight, bias=None, validation=others)
    assert detector.tuning is not None
    assert bool(detector.masks.neuron.any())


def test_labels_that_come_too_late_are_left_aside() -> None:
    reservoir = Reservoir(size=6, seed=0)
    for batch in (None, torch.zeros(5).long(), torch.zeros(5).long()):
        reservoir.show(torch.rand(5, 2), batch)
    held, labels = reservoir.sample()
    assert len(held) == 6
    assert labels is None


def test_ood_features_below_zero_are_not_shaped_and_nothing_is_said() -> None:
    world = disturbed_world()
    detector = world.fitted(OPNP(), validation_ood=world.unseen - 0.5)
    assert detector.tuning is not None
    assert {trial.settings.shaping for trial in detector.tuning.trials} == {None}


def test_a_given_shaping_warns_once_of_features_below_zero() -> None:
    world = disturbed_world()
    held_out, labels = world.validation
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataclasses.replace(world, validation=(held_out - 0.5, labels)).fitted(OPNP(shaping=ReAct()))
    assert [entry.category for entry in caught] == [SignedFeaturesWarning]


def test_a_head_that_never_doubts_is_tuned_all_the_same() -> None:
    """Its softmax is one to the last bit on every sample: all its answers are equally doubtful."""
    world = solved_world()
    sure = dataclasses.replace(world, weight=40 * world.weight)
    assert bool((linear(sure.validation[0], sure.weight).double().softmax(1).amax(1) == 1).all())
    detector = sure.fitted(OPNP())
    assert detector.tuning is not None
    assert detector.tuning.energy.failure == pytest.approx(0.5, abs=1e-9)


def rises(world: World, detector: OPNP) -> list[tuple[float, bool]]:
    """By hand: how far each trial that prunes lifts the mean logit, in deviations of the energies; if it may."""
    assert detector.tuning is not None
    samples, _ = world.validation
    found = []
    plain = linear(samples, world.weight, world.bias)
    for trial in detector.tuning.trials:
        if trial.settings.fixed_ratios != Ratios():
            pruned = detector.with_ratios(
                trial.settings.fixed_ratios, neuron=trial.settings.neuron, scope=trial.settings.scope
            ).pruned_head
            lifted = (pruned(samples).double() - plain.double()).mean()
            found.append((float(lifted / plain.logsumexp(1).std()), trial.is_harmless))
    return found


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")  # the search tries ratios that round to nothing
@pytest.mark.parametrize("seed", range(2))
def test_pruning_that_lifts_all_logits_is_refused(seed: int) -> None:
    """The least sensitive weights are those that hold the other classes down."""
    world = inhibited_world(seed=seed)
    detector = world.fitted(OPNP(shaping=None))
    found = rises(world, detector)
    assert max(rise for rise, _ in found) > 1
    assert all(rise <= 0.1 for rise, is_harmless in found if is_harmless)
    assert detector.settings.fixed_ratios == Ratios()


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
def test_pruning_that_lowers_them_is_not() -> None:
    world = spurious_world()
    found = rises(world, world.fitted(OPNP(shaping=None)))
    assert any(is_harmless for rise, is_harmless in found if rise < -1)


def test_pruning_that_detects_failures_worse_is_refused_whatever_it_gains() -> None:
    world = disturbed_world()
    detector = world.fitted(OPNP(shaping=None))
    state = detector._fitted()
    plain = dataclasses.replace(detector.settings, ratios=Ratios())
    judge = Judge.from_samples(*world.validation, state.fitted, plain, ood=None, seed=0)
    unpruned = judge.trial(state.fitted, plain)
    chosen = judge.trial(state.fitted, detector.settings, unpruned=unpruned)
    assert chosen.is_harmless
    assert chosen.failure >= unpruned.failure
    better = dataclasses.replace(unpruned, failure=chosen.failure + 0.001)
    assert not judge.trial(state.fitted, detector.settings, unpruned=better).is_harmless

"""What is chosen: in worlds where it is known what pruning and shaping do."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Settings, accuracy, auroc
from opnp.core import Masks, neuron_mask, pruned_weight, shaped, weight_mask
from opnp.detector.criterion import Trial
from opnp.detector.settings import Auto
from opnp.detector.tuning import Tuning, _best
from tests.unit.detector.tuning_world import (
    DISTURBED,
    World,
    disturbed_world,
    silent_world,
    solved_world,
    spare_world,
    spurious_world,
    twin_world,
)

NOTHING = Settings(ratios=Ratios(), shaping=None)


def tuning_of(detector: OPNP) -> Tuning:
    tuning = detector.tuning
    assert tuning is not None
    return tuning


def plain(world: World) -> OPNP:
    return world.fitted(OPNP(ratios=Ratios(), shaping=None))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_done_where_everything_can_only_harm(seed: int) -> None:
    """Whatever changes anything loses classes or detects less; what is left changes nothing."""
    world = silent_world(seed=seed)
    detector = world.fitted(OPNP())
    tuning = tuning_of(detector)
    assert detector.settings == NOTHING
    assert tuning.chosen == tuning.energy
    assert tuning.gain == tuning.spread == 0
    assert torch.equal(detector.pruned_head.weight, world.weight)
    assert tuning.tried > 50
    harmful = [trial for trial in tuning.trials if trial.value < tuning.energy.value - 0.005 or not trial.is_harmless]
    assert {trial.settings.fixed_ratios.w_min for trial in harmful} >= {0.1, 0.3, 0.5, 0.8}
    assert {trial.settings.fixed_ratios.o_min for trial in harmful} >= {0.1, 0.3, 0.5}
    assert {type(trial.settings.shaping) for trial in harmful} >= {ReAct, ASHS, SCALE}
    others = [trial for trial in tuning.trials if trial not in harmful]
    assert max(trial.value for trial in others) < tuning.energy.value + 0.001


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_pruned_where_nothing_is_won(seed: int) -> None:
    """Nine weights in ten are zero: to prune those gives a tie, and pruning must gain."""
    detector = spare_world(seed=seed).fitted(OPNP(shaping=None))
    tuning = tuning_of(detector)
    assert detector.settings == NOTHING
    tied = [trial for trial in tuning.trials if trial.value == tuning.energy.value and trial is not tuning.energy]
    assert {0.1, 0.5, 0.8} <= {trial.settings.fixed_ratios.w_min for trial in tied}
    assert not any(trial.is_harmless for trial in tied)


def test_pruning_must_gain_on_the_same_shaping_and_cost_no_failure_detection() -> None:
    tuning = tuning_of(spurious_world().fitted(OPNP()))
    unpruned = {trial.settings.shaping: trial for trial in tuning.trials if trial.settings.fixed_ratios == Ratios()}
    pruned = [trial for trial in tuning.trials if trial.settings.fixed_ratios != Ratios()]
    outcomes = set()
    for trial in pruned:
        base = unpruned[trial.settings.shaping]
        gains, tells = trial.mean_holdout >= base.mean_holdout + 0.002, trial.failure >= base.failure
        outcomes.add((gains, tells, trial.is_harmless))
    assert {(gains, tells) for gains, tells, is_harmless in outcomes if is_harmless} == {(True, True)}
    assert {(gains, tells) for gains, tells, is_harmless in outcomes if not is_harmless} >= {(False, False)}


@pytest.mark.parametrize("shaping", [None, "auto"])
def test_nothing_is_tried_where_class_holdout_has_nothing_left_to_say(shaping: Auto | None) -> None:
    world = solved_world()
    detector = world.fitted(OPNP(shaping=shaping))
    tuning = tuning_of(detector)
    assert tuning.energy.mean_holdout > 0.999
    assert detector.settings == NOTHING
    assert tuning.trials == (tuning.energy,)
    assert torch.equal(detector.score_features(world.test), plain(world).score_features(world.test))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shaping", [None, "auto"])
def test_spurious_weights_are_found_and_pruned(shaping: Auto | None, seed: int) -> None:
    world = spurious_world(seed=seed)
    energy, detector = plain(world), world.fitted(OPNP(shaping=shaping))
    assert detector.settings.fixed_ratios.w_min >= 0.5
    own = world.weight == world.weight.amax(0)
    is_pruned = detector.pruned_head.weight == 0
    assert float(is_pruned[~own].float().mean()) > 0.75
    assert world.auroc(energy) < 0.8
    assert world.auroc(detector) > 0.98
    assert tuning_of(detector).gain > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_disturbed_neurons_are_found_and_pruned(seed: int) -> None:
    world = disturbed_world(seed=seed)
    energy, detector = plain(world), world.fitted(OPNP(shaping=None))
    assert (~detector.masks.neuron).nonzero().flatten().tolist() == DISTURBED.tolist()
    assert world.auroc(energy) < 0.7
    assert world.auroc(detector) > 0.99
    assert tuning_of(detector).gain > 0.25


@pytest.mark.parametrize("seed", range(3))
def test_with_shapings_to_choose_from_it_does_as_well_against_disturbed_neurons(seed: int) -> None:
    world = disturbed_world(seed=seed)
    detector = world.fitted(OPNP())
    assert world.auroc(detector) > 0.98
    assert detector.settings != NOTHING


def largest_loss(error: float, samples: int) -> float:
    """Half a point, or the standard deviation of the error."""
    return max(0.005, math.sqrt(error / samples))


def accuracy_by_hand(world: World, detector: OPNP, settings: Settings) -> float:
    """ID accuracy on the validation samples, from the sensitivities on."""
    ratios, fitted = settings.fixed_ratios, detector._fitted().fitted
    masks = Masks(
        weight=weight_mask(fitted.sensitivity.weight, lowest=ratios.w_min, highest=ratios.w_max, scope=settings.scope),
        neuron=neuron_mask(fitted.sensitivity.neuron(settings.neuron), lowest=ratios.o_min, highest=ratios.o_max),
    )
    shaping = settings.fixed_shaping
    threshold = fitted.react_thresholds[shaping.quantile] if isinstance(shaping, ReAct) else None
    features, labels = world.validation
    logits = linear(shaped(features, shaping, threshold=threshold), pruned_weight(world.weight, masks), world.bias)
    return accuracy(logits, labels)


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")  # the search tries ratios that round to nothing
@pytest.mark.parametrize("shaping", [None, "auto"])
def test_no_accuracy_above_the_limit_is_given_for_detection(shaping: Auto | None) -> None:
    """To silence the large neurons would be worth far more than what is chosen, and would lose a class in ten."""
    world = twin_world()
    detector = world.fitted(OPNP(shaping=shaping))
    tuning = tuning_of(detector)
    plainly = accuracy_by_hand(world, detector, NOTHING)
    limit = largest_loss(1 - plainly, len(world.validation[1]))
    for trial in tuning.trials:
        assert trial.loss == pytest.approx(plainly - accuracy_by_hand(world, detector, trial.settings), abs=1e-12)
        assert trial.loss <= limit or not trial.is_harmless
    assert tuning.chosen.loss <= limit
    tempting = [trial for trial in tuning.trials if trial.value > tuning.chosen.value + 1]
    assert tempting
    assert all(trial.loss > 0.05 for trial in tempting)


def test_of_a_hard_problem_as_much_may_be_lost_as_chance_moves() -> None:
    """With a third of the labels wrong half a point would be noise: the limit is the deviation of the error."""
    world = spurious_world()
    features, labels = world.validation
    wrong = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 1 / 3
    noisy = torch.where(wrong, (labels + 1) % 10, labels)
    tuning = tuning_of(dataclasses.replace(world, validation=(features, noisy)).fitted(OPNP(shaping=None)))
    error = 1 - accuracy(linear(features, world.weight), noisy)
    limit = largest_loss(error, len(labels)) / 2  # half of it for settings that prune
    assert limit > 0.0075
    energy = tuning.energy
    trusted = [
        trial
        for trial in tuning.trials
        if trial.failure >= energy.failure and trial.mean_holdout >= energy.mean_holdout + 0.002
    ]
    assert [trial.is_harmless for trial in trusted] == [trial.loss <= limit for trial in trusted]
    assert any(0.0025 < trial.loss <= limit for trial in trusted)


def test_a_setting_that_no_longer_tells_where_the_head_errs_is_refused() -> None:
    """The limit is some points of the AUROC of failure detection, whatever the accuracy."""
    tuning = tuning_of(silent_world().fitted(OPNP()))
    unpruned = [trial for trial in tuning.trials if trial.settings.fixed_ratios == Ratios()]
    harmless = [trial for trial in unpruned if trial.is_harmless]
    refused = [trial for trial in unpruned if not trial.is_harmless and trial.loss <= 0.005]
    assert refused
    assert max(trial.failure for trial in refused) < min(trial.failure for trial in harmless)
    assert min(trial.failure for trial in harmless) > tuning.energy.failure - 0.05


def trial_of(
    ratios: Ratios, shaping: ReAct | None, *, value: float, holdout: float = 0.9, harmless: bool = True
) -> Trial:
    """A trial with this value; what the value is made of does not matter to a choice."""
    named: dict[str, Any] = {
        "settings": Settings(ratios=ratios, shaping=shaping),
        "holdout": (holdout,),
        "value": value,
        "is_harmless": harmless,
    }
    return Trial(**{field.name: named.get(field.name, 0.5) for field in dataclasses.fields(Trial)})


def test_a_tie_goes_to_less() -> None:
    energy = trial_of(Ratios(), None, value=2.0)
    little = trial_of(Ratios(w_min=0.1), None, value=3.0)
    much = trial_of(Ratios(w_min=0.5, o_min=0.1), None, value=3.0)
    both = trial_of(Ratios(), ReAct(), value=3.0)
    same = trial_of(Ratios(w_max=0.1), None, value=3.001)
    for order in ([energy, both, much, little], [little, much, both, energy]):
        assert _best(order, energy) is little
        assert _best([*order, same], energy) is same
    assert _best([energy, both, much], energy) is much
    assert _best([energy, trial_of(Ratios(w_min=0.5), None, value=2.001)], energy) is energy
    assert _best([energy, trial_of(Ratios(w_min=0.5), None, value=1.0)], energy) is energy


def test_what_harms_accuracy_or_class_holdout_is_never_chosen() -> None:
    energy = trial_of(Ratios(), None, value=2.0)
    harmful = trial_of(Ratios(w_min=0.1), None, value=9.0, harmless=False)
    worse = trial_of(Ratios(w_min=0.1), None, value=9.0, holdout=0.88)
    within = trial_of(Ratios(w_min=0.3), None, value=2.5, holdout=0.895)
    assert _best([energy, harmful, worse], energy) is energy
    assert _best([energy, harmful, worse, within], energy) is within


def test_ood_validation_data_take_the_place_of_class_holdout() -> None:
    """These OOD samples are told by the large neurons alone, which class holdout has pruned."""
    world = disturbed_world()
    quiet = world.test.index_copy(1, DISTURBED, 0.4 * world.test[:, DISTURBED])
    given = world.fitted(OPNP(shaping=None), validation_ood=quiet[:500])
    without = world.fitted(OPNP(shaping=None))
    assert bool(given.masks.neuron.all())
    assert not bool(without.masks.neuron[DISTURBED].any())
    inside, outside = world.validation[0], quiet[500:]
    assert auroc(given.score_features(inside), given.score_features(outside)) > 0.9
    assert auroc(without.score_features(inside), without.score_features(outside)) < 0.6

    tuning = tuning_of(given)
    for trial in (tuning.energy, tuning.chosen):
        assert len(trial.holdout) == 1
    energy = plain(world)
    expected = auroc(energy.score_features(inside), energy.score_features(quiet[:500]))
    assert tuning.energy.mean_holdout == pytest.approx(expected, abs=1e-6)
    assert tuning.spread == 0


def test_a_sweep_changes_its_results_from_setting_to_setting() -> None:
    tuning = tuning_of(spurious_world().fitted(OPNP()))
    assert len({trial.settings for trial in tuning.trials}) == len(tuning.trials) == tuning.tried

    def outcomes(trials: list[Trial]) -> int:
        return len({(trial.holdout, trial.thinned) for trial in trials})

    shapings = [trial for trial in tuning.trials if trial.settings.ratios == Ratios()]
    assert outcomes(shapings) == len(shapings) > 10
    for name, scope in (("w_min", "layer"), ("w_min", "class"), ("w_max", "layer"), ("o_min", "layer")):
        curve = [
            trial
            for trial in tuning.trials
            if trial.settings.scope == scope
            and trial.settings.shaping is None
            and trial.settings.neuron == "gradient"
            and trial.settings.ratios == Ratios(**{name: getattr(trial.settings.fixed_ratios, name)})
        ]
        assert outcomes(curve) == len(curve) >= 2, name


def shifted(world: World, by: float) -> World:
    """The same logits from features that are lower by a constant."""

    def lower(features: Tensor) -> Tensor:
        return features - by

    return dataclasses.replace(
        world,
        bias=world.bias + by * world.weight.sum(1),
        train=(lower(world.train[0]), world.train[1]),
        validation=(lower(world.validation[0]), world.validation[1]),
        test=lower(world.test),
        unseen=lower(world.unseen),
    )


def test_features_below_zero_are_not_shaped() -> None:
    """The same world is shaped as it is. Any `SignedFeaturesWarning` would be an error here."""
    world = disturbed_world()
    assert world.fitted(OPNP()).settings.shaping is not None
    detector = shifted(world, 0.5).fitted(OPNP())
    assert {trial.settings.shaping for trial in tuning_of(detector).trials} == {None}
    assert detector.settings.shaping is None
    assert not bool(detector.masks.neuron[DISTURBED].any())


@pytest.mark.parametrize("shaping", [None, ReAct(0.97), SCALE(0.7)])
def test_a_given_shaping_is_kept_and_the_ratios_are_chosen_under_it(shaping: ReAct | SCALE | None) -> None:
    detector = spurious_world().fitted(OPNP(shaping=shaping))
    tuning = tuning_of(detector)
    assert {trial.settings.shaping for trial in tuning.trials} == {shaping}
    assert tuning.energy.settings == dataclasses.replace(NOTHING, shaping=shaping)
    assert detector.settings.fixed_ratios.w_min > 0


@pytest.mark.parametrize("ratios", [Ratios(), Ratios(w_min=0.3)])
def test_given_ratios_are_kept_and_nothing_is_tuned(ratios: Ratios) -> None:
    detector = disturbed_world().fitted(OPNP(ratios=ratios))
    assert detector.settings == dataclasses.replace(NOTHING, ratios=ratios)
    assert detector.tuning is None


def test_score_and_temperature_are_those_given() -> None:
    detector = spurious_world().fitted(OPNP(score="msp", temperature=2.0, shaping=None))
    assert {(trial.settings.score, trial.settings.temperature) for trial in tuning_of(detector).trials} == {
        ("msp", 2.0)
    }

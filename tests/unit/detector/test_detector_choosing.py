"""What an automatic choice is made on, what is said where it cannot be made, and what is left of it afterwards."""

import dataclasses
import gc
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import OPNP, Ratios, ReAct, Settings
from opnp.detector.choosing import TUNING_SAMPLES
from opnp.detector.learning import Learning
from opnp.detector.settings import Auto
from opnp.detector.tuning import Tuning
from opnp.errors import TuningWarning
from tests.unit.detector.detector_world import bias, features, weight
from tests.unit.detector.tuning_world import World, disturbed_world, spurious_world

NOTHING = Settings(ratios=Ratios(), shaping=None)


def tuning_of(detector: OPNP) -> Tuning:
    tuning = detector.tuning
    assert tuning is not None
    return tuning


def model_of(world: World) -> nn.Sequential:
    """Return a model whose features are its inputs, as these are not negative."""
    head = nn.Linear(world.weight.shape[1], len(world.weight))
    head.weight.data, head.bias.data = world.weight.clone(), world.bias.clone()
    return nn.Sequential(nn.ReLU(), head)


# ----------------------------------------------------------------------------------------------------- labels
def test_missing_labels_are_those_that_the_head_predicts() -> None:
    world = spurious_world()
    held_out = world.validation[0]
    predicted = linear(held_out, world.weight, world.bias).argmax(1)
    without = tuning_of(world.fitted(OPNP(shaping=None), is_labelled=False))
    with_predicted = tuning_of(dataclasses.replace(world, validation=(held_out, predicted)).fitted(OPNP(shaping=None)))
    with_labels = tuning_of(world.fitted(OPNP(shaping=None)))
    assert not without.is_labelled
    assert with_labels.is_labelled
    assert without.energy == with_predicted.energy
    assert without.energy.holdout != with_labels.energy.holdout
    assert without.chosen.settings.fixed_ratios.w_min > 0


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")  # the search tries ratios that round to nothing
def test_without_labels_the_limit_is_on_changed_answers() -> None:
    world = spurious_world()
    held_out = world.validation[0]
    before = linear(held_out, world.weight, world.bias).argmax(1)
    detector = world.fitted(OPNP(shaping=None), is_labelled=False)
    tuning = tuning_of(detector)
    for trial in tuning.trials:
        options = trial.settings
        head = detector.with_ratios(options.fixed_ratios, neuron=options.neuron, scope=options.scope).pruned_head
        after = linear(held_out, head.weight, head.bias).argmax(1)
        assert trial.loss == pytest.approx(float((before != after).double().mean()), abs=1e-12)
    confidence = linear(held_out, world.weight, world.bias).softmax(1).amax(1)
    limit = max(0.005, math.sqrt((1 - float(confidence.mean())) / len(held_out)))
    assert {trial.is_harmless for trial in tuning.trials if trial.loss > limit} == {False}
    assert tuning.chosen.loss <= limit


# -------------------------------------------------------------------------------------------------- fallbacks
def some_classes(world: World, classes: int) -> World:
    """The same world to a head that has but the first classes."""
    held_out, labels = world.validation
    known = labels < classes
    return dataclasses.replace(
        world, weight=world.weight[:classes], bias=world.bias[:classes], validation=(held_out[known], labels[known])
    )


@pytest.mark.parametrize("is_labelled", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 9])
def test_few_classes_are_too_few_for_class_holdout(classes: int, is_labelled: bool) -> None:
    world = some_classes(disturbed_world(), classes)
    message = rf"fewer than 10 classes, got {classes}.*Nothing is pruned, and no shaping is chosen"
    with pytest.warns(TuningWarning, match=message) as caught:
        detector = OPNP().fit_features(
            world.train[0],
            weight=world.weight,
            bias=world.bias,
            validation=world.validation if is_labelled else world.validation[0],
        )
    _assert_fell_back(detector, caught)
    assert detector.is_calibrated


def test_two_classes_with_ood_validation_data_are_enough() -> None:
    world = some_classes(disturbed_world(), 2)
    assert tuning_of(world.fitted(OPNP(), validation_ood=world.unseen)).tried > 20


@pytest.mark.parametrize("has_ood", [True, False])
def test_fewer_than_a_hundred_samples_are_too_few(has_ood: bool) -> None:
    world = disturbed_world()
    held_out, labels = world.validation
    with pytest.warns(TuningWarning, match=r"need at least 100 ID samples, got 99\. Nothing is pruned") as caught:
        detector = OPNP().fit_features(
            world.train[0],
            weight=world.weight,
            bias=world.bias,
            validation=(held_out[:99], labels[:99]),
            validation_ood=world.unseen if has_ood else None,
        )
    _assert_fell_back(detector, caught)
    hundred = dataclasses.replace(world, validation=(held_out[:100], labels[:100]))
    assert tuning_of(hundred.fitted(OPNP(shaping=None))).samples == 100


def test_held_out_samples_of_one_class_are_too_few_classes() -> None:
    world = disturbed_world()
    with pytest.warns(TuningWarning, match="got 10 classes, 1 of them with samples") as caught:
        detector = OPNP().fit_features(
            world.train[0],
            weight=world.weight,
            bias=world.bias,
            validation=(world.validation[0], torch.full((1000,), 3)),
        )
    _assert_fell_back(detector, caught)


def _assert_fell_back(detector: OPNP, caught: pytest.WarningsRecorder) -> None:
    assert detector.settings == NOTHING
    assert detector.tuning is None
    assert torch.equal(detector.pruned_head.weight, detector._fitted().fitted.weight)
    assert [entry.filename for entry in caught] == [__file__]


def test_a_fallback_keeps_what_was_given() -> None:
    with pytest.warns(TuningWarning, match="got 60"):
        detector = OPNP(shaping=ReAct(0.8), score="msp").fit_features(features(), weight=weight(), bias=bias())
    assert detector.settings == dataclasses.replace(NOTHING, shaping=ReAct(0.8), score="msp")
    assert detector.score_features(features()).isfinite().all()


def test_without_validation_the_training_samples_serve_and_a_warning_asks_for_others() -> None:
    world = disturbed_world()
    with pytest.warns(TuningWarning, match=r"chosen on the training data.*Give them as `validation`") as caught:
        detector = OPNP(shaping=None).fit_features(
            world.train[0], weight=world.weight, bias=world.bias, labels=world.train[1]
        )
    assert [entry.filename for entry in caught] == [__file__]
    tuning = tuning_of(detector)
    assert (tuning.source, tuning.samples, tuning.is_labelled) == ("training", len(world.train[0]), True)
    assert not detector.is_calibrated
    assert detector.settings.fixed_ratios.o_max > 0


def test_with_validation_nothing_is_said_and_the_source_is_named() -> None:
    tuning = tuning_of(disturbed_world().fitted(OPNP(shaping=None)))
    assert (tuning.source, tuning.samples, tuning.is_labelled) == ("validation", 1000, True)


def test_a_bounded_number_of_samples_is_judged_by() -> None:
    world = disturbed_world()
    features, labels = world.validation
    many = dataclasses.replace(world, validation=(features.repeat(6, 1), labels.repeat(6)))
    detector = many.fitted(OPNP(shaping=None))
    assert tuning_of(detector).samples == TUNING_SAMPLES == 5000
    assert len(detector.calibration_scores) == 6000


# ------------------------------------------------------------------------------------------ the same every time
@pytest.mark.parametrize("shaping", [None, "auto"])
def test_the_same_data_give_the_same_choice_and_the_same_bytes(tmp_path: Path, shaping: Auto | None) -> None:
    for name in ("one", "other"):
        spurious_world().fitted(OPNP(shaping=shaping)).save(tmp_path / name)
        torch.rand(5)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_saved_detector_remembers_how_it_was_chosen(tmp_path: Path) -> None:
    world = spurious_world()
    detector = world.fitted(OPNP())
    detector.save(tmp_path / "detector")
    loaded, tuning = OPNP.load(tmp_path / "detector"), tuning_of(detector)
    remembered = tuning_of(loaded)
    assert remembered == dataclasses.replace(tuning, trials=(tuning.energy, tuning.chosen))
    assert (remembered.gain, remembered.spread) == (tuning.gain, tuning.spread)
    assert remembered.tried == len(tuning.trials)
    assert loaded.settings == detector.settings
    assert torch.equal(loaded.score_features(world.test), detector.score_features(world.test))
    assert torch.equal(loaded.masks.weight, detector.masks.weight)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "detector").read_bytes()


def test_json_of_a_tuning_holds_finite_values_alone() -> None:
    tuning = tuning_of(disturbed_world().fitted(OPNP()))
    text = json.dumps(tuning.to_json(), allow_nan=False)
    assert Tuning.from_json(json.loads(text)).chosen == tuning.chosen


def test_gain_and_spread_are_mean_and_deviation_of_the_draws() -> None:
    tuning = tuning_of(spurious_world().fitted(OPNP(shaping=None)))
    gains = torch.tensor(tuning.chosen.holdout).double() - torch.tensor(tuning.energy.holdout).double()
    assert len(gains) == 16
    assert tuning.gain == pytest.approx(float(gains.mean()), abs=1e-7)
    assert tuning.spread == pytest.approx(float(gains.std()), abs=1e-7)


def test_other_ratios_later_were_not_tuned() -> None:
    detector = disturbed_world().fitted(OPNP(shaping=None))
    assert detector.with_ratios(Ratios(w_min=0.3)).tuning is None
    assert detector.tuning is not None


# -------------------------------------------------------------------------------------------- models and memory
def batches(data: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


@pytest.mark.parametrize("has_ood", [True, False])
def test_a_model_with_loaders_gives_what_its_features_give(has_ood: bool) -> None:
    world = disturbed_world()
    ood = world.test.index_fill(1, torch.arange(6), 0.0) if has_ood else None
    from_features = world.fitted(OPNP(precision="float64"), validation_ood=ood)
    from_model = OPNP(precision="float64").fit(
        model_of(world),
        batches(world.train, 64),
        validation=batches(world.validation, 37),
        validation_ood=None if ood is None else ood.split(50),
    )
    assert tuning_of(from_model).is_labelled
    assert from_model.settings == from_features.settings
    assert [trial.settings for trial in tuning_of(from_model).trials] == [
        trial.settings for trial in tuning_of(from_features).trials
    ]
    for one, other in zip(tuning_of(from_model).trials, tuning_of(from_features).trials, strict=True):
        assert (one.holdout, one.thinned, one.loss) == (other.holdout, other.thinned, other.loss)
    assert torch.equal(from_model.masks.weight, from_features.masks.weight)
    assert torch.equal(from_model.calibration_scores, from_features.calibration_scores)


def test_a_loader_without_labels_is_judged_by_predicted_ones() -> None:
    world = disturbed_world()
    detector = OPNP(shaping=None).fit(
        model_of(world), batches(world.train, 64), validation=world.validation[0].split(100)
    )
    assert not tuning_of(detector).is_labelled
    assert detector.settings.fixed_ratios.o_max > 0


@pytest.mark.parametrize(("ratios", "held"), [(Ratios(w_min=0.3), 0), ("auto", 5000)])
def test_features_are_held_only_where_something_is_chosen_by_them(ratios: Ratios | Auto, held: int) -> None:
    world = disturbed_world()
    learning = Learning(Settings(ratios=ratios), is_held_out=True)
    learning.take([(world.train[0], None, None)], world.weight, world.bias)
    learning.join()
    seen: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[tuple[Tensor, Tensor | None]]:
        for _ in range(5):
            rows = world.validation[0].clone()
            seen.append(weakref.ref(rows))
            yield rows, None

    learning.hold_out(stream())
    gc.collect()
    assert sum(map(len, learning._held_out)) == held
    if held == 0:
        assert [reference() for reference in seen] == [None] * 5
    state = learning.state(None, keep=0.95)
    assert state.calibration is not None
    assert len(state.calibration.scores) == 5000


def test_training_features_are_held_only_as_a_bounded_sample() -> None:
    world = disturbed_world()
    learning = Learning(Settings(), is_held_out=False)
    seen: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[tuple[Tensor, None, None]]:
        for _ in range(4):
            rows = world.train[0].clone()
            seen.append(weakref.ref(rows))
            yield rows, None, None

    learning.take(stream(), world.weight, world.bias)
    learning.join()
    gc.collect()
    assert [reference() for reference in seen] == [None] * 4
    with pytest.warns(TuningWarning, match="chosen on the training data"):
        assert tuning_samples(learning) == TUNING_SAMPLES


def tuning_samples(learning: Learning) -> int:
    tuning = learning.state(None, keep=0.95).tuning
    assert tuning is not None
    return tuning.samples

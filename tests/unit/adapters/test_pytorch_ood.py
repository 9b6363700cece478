"""The detector for pytorch-ood: what OPNP answers, by their interface, with hyper-parameters that take effect."""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from torch import Tensor, nn

import opnp.adapters
from opnp import OPNP, SCALE, Ratios
from opnp.adapters.pytorch_ood import EncoderMissingError, FitMissingError, OPNPDetector
from opnp.errors import (
    EmptyDataError,
    InputTypeError,
    MissingExtraError,
    NonFiniteError,
    NotFittedError,
    OptionError,
    RatioError,
    ShapeError,
)
from tests.contract.snapshot import unchanged
from tests.unit.adapters.encoder_world import Net, inputs_and_labels, loader
from tests.unit.bench.bench_world import CLASSES, world_features, world_weight

TRAIN, LABELS = world_features(300, seed=0)
QUERY = world_features(40, seed=1, strength=1.0)[0]
WEIGHT = world_weight()
BIAS = torch.linspace(-1, 1, CLASSES)

RATIO = st.sampled_from([0.0, 0.25, 0.5])
READINGS = st.sampled_from(["gradient", "aggregate"])
SCOPES = st.sampled_from(["layer", "class"])


def is_allowed(step: Any) -> bool:
    """Return whether the ratios leave something of each layer."""
    return bool(step["w_min"] + step["w_max"] < 1 and step["o_min"] + step["o_max"] < 1)


def detector(**options: object) -> OPNPDetector:
    return OPNPDetector(None, w=WEIGHT, b=BIAS, **{"w_min": 0.0, **options})  # type: ignore[arg-type]  # of many types


def fitted(**options: object) -> OPNPDetector:
    found: OPNPDetector = detector(**options).fit_features(TRAIN, LABELS)
    return found


def fresh(**options: object) -> OPNP:
    """Return the detector of this project with these options, fitted by itself."""
    ratios = Ratios(**{name: options.pop(name) for name in ("w_min", "w_max", "o_min", "o_max") if name in options})  # type: ignore[arg-type]  # of many types
    found = OPNP(ratios=ratios, **{"shaping": None, **options})  # type: ignore[arg-type]  # as above
    return found.fit_features(TRAIN, weight=WEIGHT, bias=BIAS)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of rows with every pass over features."""
    seen: list[int] = []
    original = OPNP.fit_features

    def counted(self: OPNP, features: Tensor, **options: object) -> OPNP:
        seen.append(len(features))
        return original(self, features, **options)  # type: ignore[arg-type]  # passed on as given

    monkeypatch.setattr(OPNP, "fit_features", counted)
    return seen


def test_it_is_a_detector_of_pytorch_ood() -> None:
    found = detector()
    assert isinstance(found, FeaturesDetector)
    assert found.requires_fit
    assert found.info.paper.year == 2023
    assert set(found.get_hyperparameters()) == {"w_min", "w_max", "o_min", "o_max"}
    for values in product(*found.hyperparameter_space.values()):
        found.set_hyperparameters(**dict(zip(found.hyperparameter_space, values, strict=True)))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.fixed_dictionaries(
            {"w_min": RATIO, "w_max": RATIO, "o_min": RATIO, "o_max": RATIO, "neuron": READINGS, "scope": SCOPES}
        ).filter(is_allowed),
        min_size=1,
        max_size=3,
    ),
    is_refitted=st.booleans(),
)
def test_hyper_parameters_set_later_are_those_given_first(steps: list[dict[str, Any]], is_refitted: bool) -> None:
    found = fitted()
    for step in steps:
        found.set_hyperparameters(**step)
        if is_refitted:
            found.fit_features(TRAIN, LABELS)
        expected = fresh(**step)
        assert found.opnp.masks.kept.equal(expected.masks.kept)
        assert found.predict_features(QUERY).equal(expected.score_features(QUERY))


@pytest.mark.parametrize("change", ["features", "their order", "behind torch", "labels", "no labels"])
def test_other_data_are_gone_through_again(change: str, passes: list[int]) -> None:
    array = TRAIN.numpy().copy()
    features, labels = torch.from_numpy(array), LABELS.clone()
    found = detector(w_min=0.3).fit_features(features, labels)
    match change:
        case "features":
            features[::2] *= 3
        case "their order":
            features.copy_(features.roll(1, dims=1))  # the same sum
        case "behind torch":
            array[:] = array[:, ::-1].copy()
        case _:
            labels[::2] = -1
    given_labels = None if change == "no labels" else labels
    found.fit_features(features, given_labels)
    assert len(passes) == 2
    expected = detector(w_min=0.3).fit_features(features.clone(), given_labels)
    assert found.predict_features(QUERY).equal(expected.predict_features(QUERY))


def test_samples_with_negative_labels_are_left_out() -> None:
    labels = torch.where(torch.arange(300) % 3 == 0, -1, LABELS)
    mixed = TRAIN + 50.0 * (labels < 0)[:, None]
    found = detector(w_min=0.4).fit_features(mixed, labels)
    expected = detector(w_min=0.4).fit_features(TRAIN[labels >= 0])
    assert found.opnp.sensitivity.weight.equal(expected.opnp.sensitivity.weight)
    with pytest.raises(EmptyDataError, match="`y` names no ID sample"):
        detector().fit_features(TRAIN, torch.full((300,), -1))
    with pytest.raises(EmptyDataError, match="The labels name no ID sample"):
        OPNPDetector(nn.Identity(), w=WEIGHT, b=BIAS).fit([(TRAIN, torch.full((300,), -1))])


@pytest.mark.parametrize("is_biased", [True, False])
def test_a_head_is_a_layer_or_a_weight_and_a_bias_and_is_copied(is_biased: bool) -> None:
    bias = BIAS if is_biased else None
    layer = nn.Linear(WEIGHT.shape[1], CLASSES, bias=is_biased)
    layer.weight.data.copy_(WEIGHT)
    if is_biased:
        layer.bias.data.copy_(BIAS)
    by_layer, by_tensors = OPNPDetector(None, layer, w_min=0.3), OPNPDetector(None, w=WEIGHT, b=bias, w_min=0.3)
    with torch.no_grad():
        layer.weight.zero_()
    scores = [each.fit_features(TRAIN, LABELS).predict_features(QUERY) for each in (by_layer, by_tensors)]
    assert scores[0].equal(scores[1])


def test_a_head_that_cannot_be_read_is_refused() -> None:
    layer = nn.Linear(3, 2)
    for options in ({}, {"head": layer, "w": WEIGHT}, {"head": layer, "b": BIAS}):
        with pytest.raises(OptionError, match=r"either as `head`, an nn.Linear, or as `w` and `b`"):
            OPNPDetector(None, **options)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InputTypeError, match=r"`head` must be an nn.Linear, got Sequential"):
        OPNPDetector(None, nn.Sequential(layer))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ShapeError, match="a row for each of at least two classes"):
        OPNPDetector(None, w=WEIGHT[:0])


@pytest.mark.parametrize("kind", ["module", "method", "partial"])
def test_the_encoder_runs_in_eval_mode_and_known_inputs_alone_are_fitted_to(kind: str) -> None:
    net = Net()
    module = nn.Sequential(net.body, nn.AdaptiveAvgPool2d(1))
    encoders: dict[str, Callable[[Tensor], Tensor]] = {"module": module, "method": net.features}
    encoder = encoders.get(kind, partial(partial(net.features)))
    inputs, labels = inputs_and_labels(60)
    labels[5:25] = -1
    query = inputs_and_labels(9, seed=1)[0]
    found = OPNPDetector(encoder, net.fc, w_min=0.3)
    with unchanged(net, "fitting and scoring"):
        scores = found.fit(loader(inputs, labels)).predict(query)
    expected = OPNPDetector(None, net.fc, w_min=0.3).fit_features(net.quiet_features(inputs), labels)
    assert expected.opnp.sensitivity.count == found.opnp.sensitivity.count == 40
    torch.testing.assert_close(scores, expected.predict_features(net.quiet_features(query)))
    assert not scores.requires_grad


def test_batches_need_no_labels_and_ood_batches_are_passed_over() -> None:
    net, (inputs, labels) = Net(), inputs_and_labels(48)
    bare = OPNPDetector(net.features, net.fc, w_min=0.3).fit([part for part, _ in loader(inputs, labels)])
    with_ood = loader(inputs, labels)
    with_ood.insert(1, (inputs[:16] + 9, torch.full((16,), -1)))
    mixed = OPNPDetector(net.features, net.fc, w_min=0.3).fit(with_ood)
    assert bare.opnp.sensitivity.weight.equal(mixed.opnp.sensitivity.weight)
    with pytest.raises(EmptyDataError, match="The labels name no ID sample"):
        OPNPDetector(net.features, net.fc).fit([(inputs, -torch.ones(48, dtype=torch.int64))])
    with pytest.raises(InputTypeError, match="as in pytorch-ood, got a mapping"):
        OPNPDetector(net.features, net.fc).fit([{"inputs": inputs, "labels": labels}])


def test_before_fit_both_packages_errors_are_raised() -> None:
    found = detector()
    assert issubclass(FitMissingError, RequiresFittingException)
    assert issubclass(FitMissingError, NotFittedError)
    with pytest.raises(FitMissingError, match="not been fitted to any data"):
        found.predict_features(QUERY)
    found.fit_features(TRAIN, LABELS)
    for name, value in {"temperature": 2.0, "shaping": SCALE(0.85)}.items():
        setattr(found, name, value)
        with pytest.raises(RequiresFittingException, match="not been fitted for these hyper-parameters: call `fit`"):
            found.predict_features(QUERY)
        found.fit_features(TRAIN, LABELS)
    assert found.predict_features(QUERY).equal(fresh(temperature=2.0, shaping=SCALE(0.85)).score_features(QUERY))


def test_inputs_without_an_encoder_are_refused() -> None:
    assert issubclass(EncoderMissingError, ModelNotSetException)
    for call in (fitted().predict, detector().fit):
        with pytest.raises(EncoderMissingError, match="use `fit_features` and `predict_features`"):
            call(QUERY)


def test_hyper_parameters_are_set_all_or_none() -> None:
    found = fitted(w_min=0.3)
    with pytest.raises(OptionError, match=r"Options must be among w_min.*got percentile"):
        found.set_hyperparameters(w_max=0.1, percentile=0.9)
    with pytest.raises(RatioError, match=r"`w_min` = 0.6 and `w_max` = 0.5"):
        found.set_hyperparameters(w_min=0.6, w_max=0.5)
    with pytest.raises(RatioError, match="`w_min` must be"):
        detector(w_min=30)
    assert found.get_hyperparameters() == {"w_min": 0.3, "w_max": None, "o_min": None, "o_max": None}
    # A sweep over a name that is no option would try the same detector again and again.
    found.__dict__["hyperparameter_space"] = {"percentile": [0.9]}  # as `GridSearch` does it
    with pytest.raises(OptionError, match="got percentile"):
        found.set_hyperparameters(percentile=0.9)


def fused(**options: Any) -> OPNPDetector:
    return OPNPDetector(None, w=WEIGHT, b=BIAS, **options)


def test_the_fusion_and_the_papers_method_take_a_pass_each_and_are_kept(passes: list[int]) -> None:
    found = fused().fit_features(TRAIN, LABELS)
    scores = found.predict_features(QUERY)
    found.w_min = 0.3
    with pytest.raises(FitMissingError, match="for these hyper-parameters"):
        found.predict_features(QUERY)
    found.fit_features(TRAIN, LABELS)
    assert found.predict_features(QUERY).equal(fresh(w_min=0.3).score_features(QUERY))
    assert passes == [300, 300, 300]  # the last one is that of `fresh`
    found.w_min = None
    assert found.fit_features(TRAIN, LABELS).predict_features(QUERY).equal(scores)
    assert passes == [300, 300, 300]


def test_members_and_ratios_do_not_go_together() -> None:
    found = fused(members=["gen"])
    with pytest.raises(OptionError, match="`members` choose scores to fuse"):
        found.set_hyperparameters(w_min=0.1)
    assert (found.w_min, found.members) == (None, ["gen"])


def test_shapes_that_do_not_fit_are_refused_and_leave_the_fit_as_it_was() -> None:
    found = fitted()
    before = found.predict_features(QUERY)
    with pytest.raises(ShapeError, match=r"`y` must have shape \(300,\).*got \(299,\)"):
        found.fit_features(TRAIN, LABELS[:-1])
    with pytest.raises(InputTypeError, match=r"`z` must be a torch.Tensor"):
        found.fit_features(TRAIN.numpy(), LABELS)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(NonFiniteError):
        found.fit_features(TRAIN * float("inf"), LABELS)
    with pytest.raises(ShapeError, match="features"):
        found.predict_features(QUERY[:, 1:])
    assert found.predict_features(QUERY).equal(before)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let pytorch-ood and what depends on it be imported anew."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "pytorch_ood" or name == "opnp.adapters.pytorch_ood":
            monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_without_pytorch_ood_the_extra_is_named(forgotten: pytest.MonkeyPatch) -> None:
    forgotten.setitem(sys.modules, "pytorch_ood", None)  # what Python takes for a module that cannot be found
    importlib.reload(opnp.adapters)
    assert "opnp.adapters.pytorch_ood" not in sys.modules
    with pytest.raises(MissingExtraError, match=r"needs pytorch-ood.*pip install 'opnp\[bench\]'"):
        importlib.import_module("opnp.adapters.pytorch_ood")


def test_a_broken_pytorch_ood_speaks_for_itself(forgotten: pytest.MonkeyPatch) -> None:
    forgotten.setitem(sys.modules, "typing_extensions", None)
    with pytest.raises(ModuleNotFoundError, match="typing_extensions") as caught:
        importlib.import_module("opnp.adapters.pytorch_ood")
    assert not isinstance(caught.value, MissingExtraError)

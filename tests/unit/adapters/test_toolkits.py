"""What detectors in other toolkits are made of: flat options, a head behind an encoder, bytes."""

from dataclasses import asdict
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnp import OPNP, PANEL, SCALE, Ratios, Settings
from opnp.adapters.toolkits import (
    OPTION_DEFAULTS,
    RATIO_NAMES,
    EncodedClassifier,
    blank_pass,
    bytes_of,
    detector_from,
    encoded,
    settings_of,
)
from opnp.errors import ArtifactError, InputTypeError, NotFittedError, OptionError
from tests.unit.adapters.encoder_world import Net, inputs_and_labels

INPUTS = inputs_and_labels(40)[0]


def test_every_option_of_a_detector_is_one_here() -> None:
    assert set(OPTION_DEFAULTS) == set(signature(OPNP).parameters) - {"ratios"} | set(asdict(Ratios()))
    assert settings_of({}) == OPNP().settings == settings_of(OPTION_DEFAULTS)
    assert settings_of({"members": ["gen", "norm"]}) == OPNP(members=["gen", "norm"]).settings
    assert settings_of({"precision": "float64"}) == OPNP(precision="float64").settings


@given(st.dictionaries(st.sampled_from(RATIO_NAMES), st.sampled_from([None, 0.0, 0.25, 0.4])))
def test_scores_are_fused_where_no_ratio_is_given(ratios: dict[str, float | None]) -> None:
    found = settings_of(dict(ratios))
    if all(value is None for value in ratios.values()):
        assert found.members == PANEL
    else:
        assert found == Settings(ratios=Ratios(**{name: value or 0.0 for name, value in ratios.items()}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neuron", "aggregate"),
        ("scope", "class"),
        ("temperature", 2.0),
        ("score", "msp"),
        ("shaping", SCALE(0.85)),
        ("shaping", {"name": "scale", "quantile": 0.85}),
    ],
)
def test_any_option_of_the_papers_method_means_that_method(name: str, value: object) -> None:
    found = settings_of({name: value})
    assert (found.is_fusion, found.ratios) == (False, Ratios())
    assert getattr(found, name) == (SCALE(0.85) if name == "shaping" else value)
    with pytest.raises(OptionError, match=rf"`members` choose scores to fuse, and `{name}` belongs to the pruned head"):
        settings_of({name: value, "members": ["gen"]})


@pytest.mark.parametrize("wrong", [{"name": "dice", "quantile": 0.5}, {"name": "scale"}, "scale"])
def test_other_shapings_are_refused(wrong: object) -> None:
    with pytest.raises(OptionError, match="`shaping` must be"):
        settings_of({"shaping": wrong})


def test_one_pass_serves_ratios_reading_and_scope_alone() -> None:
    base, fused = settings_of({"w_min": 0.3}), settings_of({})
    assert blank_pass(fused) == fused
    for options in ({"w_min": 0.5}, {"o_max": 0.1}, {"w_min": 0.1, "neuron": "aggregate", "scope": "class"}):
        assert blank_pass(settings_of(options)) == blank_pass(base)
    for options in ({}, {"w_min": 0.3, "temperature": 2.0}, {"w_min": 0.3, "shaping": SCALE(0.85)}):
        assert blank_pass(settings_of(options)) != blank_pass(base)


def test_logits_are_those_of_the_head_in_its_dtype() -> None:
    net = Net().eval()
    halved = EncodedClassifier(net.features, net.fc.weight.double(), net.fc.bias.double())
    torch.testing.assert_close(halved(INPUTS), net(INPUTS).double())
    assert not any(parameter.requires_grad for parameter in halved.head.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_an_encoder_of_something_else_is_refused() -> None:
    for encoder in (nn.Identity(), lambda inputs: inputs):
        with pytest.raises(InputTypeError, match=r"must return a tensor of features, .*got list"):
            encoded(lambda inputs, inner=encoder: [inner(inputs)], INPUTS)  # type: ignore[arg-type, misc]  # wrong on purpose


def test_bytes_of_no_detector_are_refused() -> None:
    with pytest.raises(ArtifactError):
        detector_from(b"something else")
    with pytest.raises(NotFittedError):
        bytes_of(OPNP())

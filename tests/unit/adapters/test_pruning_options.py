"""Flat options stand for settings, one for one."""

from dataclasses import asdict
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnp import OPNP, PANEL, SCALE, Ratios, Settings
from opnp.adapters.toolkits import OPTION_DEFAULTS, RATIO_NAMES, blank_pass, reset, settings_of
from opnp.errors import NotFittedError, OptionError
from tests.unit.bench.bench_world import world_features, world_weight


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
    [("neuron", "aggregate"), ("scope", "class"), ("temperature", 2.0), ("score", "msp"), ("shaping", SCALE(0.85))],
)
def test_any_option_of_the_papers_method_means_that_method(name: str, value: object) -> None:
    found = settings_of({name: value})
    assert (found.is_fusion, found.ratios, getattr(found, name)) == (False, Ratios(), value)
    with pytest.raises(OptionError, match=rf"`members` choose scores to fuse, and `{name}` belongs to the pruned head"):
        settings_of({name: value, "members": ["gen"]})


def test_shapings_are_values_or_mappings() -> None:
    for shaping in (SCALE(0.85), {"name": "scale", "quantile": 0.85}):
        assert settings_of({"shaping": shaping}).shaping == SCALE(0.85)
    for wrong in ({"name": "dice", "quantile": 0.5}, {"name": "scale"}, "scale"):
        with pytest.raises(OptionError, match="`shaping` must be"):
            settings_of({"shaping": wrong})


def test_one_pass_serves_ratios_reading_and_scope_alone() -> None:
    base = settings_of({"w_min": 0.3})
    for options in ({"w_min": 0.5}, {"o_max": 0.1}, {"w_min": 0.1, "neuron": "aggregate", "scope": "class"}):
        assert blank_pass(settings_of(options)) == blank_pass(base)
    for options in ({}, {"w_min": 0.3, "temperature": 2.0}, {"w_min": 0.3, "shaping": SCALE(0.85)}):
        assert blank_pass(settings_of(options)) != blank_pass(base)
    features, weight = world_features(60, seed=0)[0], world_weight()
    wanted = settings_of({"w_min": 0.3, "o_max": 0.25, "neuron": "aggregate", "scope": "class"})
    blank = OPNP.from_settings(blank_pass(wanted)).fit_features(features, weight=weight, bias=None)
    expected = OPNP.from_settings(wanted).fit_features(features, weight=weight, bias=None)
    found = reset(blank, wanted)
    assert torch.equal(found.masks.kept, expected.masks.kept)
    assert found.settings == expected.settings


def test_the_fusion_and_the_papers_method_take_a_pass_each() -> None:
    fused, paper = settings_of({}), settings_of({"w_min": 0.3})
    assert blank_pass(fused) == fused
    features, weight = world_features(200, seed=0)[0], world_weight()
    fitted = {
        each: OPNP.from_settings(each).fit_features(features, weight=weight, bias=None) for each in (fused, paper)
    }
    assert reset(fitted[fused], fused) is fitted[fused]
    for one, other in ((fused, paper), (paper, fused)):
        with pytest.raises(NotFittedError, match="take another pass each: fit again"):
            reset(fitted[one], other)

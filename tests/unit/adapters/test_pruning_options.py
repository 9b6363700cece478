"""Flat options stand for settings, one for one."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnp import SCALE, Ratios, Settings
from opnp.adapters.pruning_options import OPTION_DEFAULTS, RATIO_NAMES, blank_pass, opnp_of, reset, settings_of
from opnp.errors import OptionError
from tests.unit.bench.bench_world import world_features, world_weight


def test_every_option_of_a_detector_is_one_here() -> None:
    assert set(OPTION_DEFAULTS) == set(asdict(Settings())) - {"ratios"} | set(asdict(Ratios()))
    assert settings_of({}) == Settings()
    assert settings_of(OPTION_DEFAULTS) == Settings()


@given(st.dictionaries(st.sampled_from(RATIO_NAMES), st.sampled_from([None, 0.0, 0.25, 0.4])))
def test_ratios_are_automatic_where_none_is_given(ratios: dict[str, float | None]) -> None:
    found = settings_of(dict(ratios)).ratios
    if all(value is None for value in ratios.values()):
        assert found == "auto"
    else:
        assert found == Ratios(**{name: value or 0.0 for name, value in ratios.items()})


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
    blank = opnp_of(blank_pass(wanted)).fit_features(features, weight=weight, bias=None)
    expected = opnp_of(wanted).fit_features(features, weight=weight, bias=None)
    found = reset(blank, wanted)
    assert torch.equal(found.masks.kept, expected.masks.kept)
    assert (found.settings, reset(blank, settings_of({}))) == (expected.settings, blank)

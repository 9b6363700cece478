"""Every option: checked once, and through JSON unchanged."""

import json
from typing import Any

import pytest

from opnp import ASHS, OPNP, SCALE, SCORE_NAMES, Ratios, ReAct, Settings
from opnp.errors import OptionError, TuningWarning
from tests.unit.detector.detector_world import bias, features, fitted, weight

SETTINGS = [
    Settings(),
    Settings(ratios=Ratios(0.7, 0.001, 0.3, 0.003), neuron="aggregate", scope="class"),
    Settings(ratios=Ratios(w_min=0.1 + 0.2), temperature=1 / 3, precision="float64"),
    Settings(shaping=None),
    Settings(shaping=ReAct(0.95)),
    Settings(shaping=ASHS(0.65)),
    Settings(shaping=SCALE(0.85)),
    *(Settings(score=score) for score in SCORE_NAMES),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_json_round_trip(settings: Settings) -> None:
    text = json.dumps(settings.to_json(), allow_nan=False)
    assert Settings.from_json(json.loads(text)) == settings


@pytest.mark.parametrize(
    "values",
    [
        {"ratios": {"w_min": 2}},
        {"ratios": {"rho": 0.1}},
        {"ratios": 3},
        {"neuron": "max"},
        {"shaping": {"name": "dice", "quantile": 0.9}},
        {"shaping": {"name": "react", "quantile": 9}},
        {"shaping": {"name": "react"}},
        {"unknown": 1},
    ],
)
def test_json_of_something_else(values: dict[str, object]) -> None:
    with pytest.raises((OptionError, TypeError, KeyError)):
        Settings.from_json(values)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ratios", 0.3, r"`ratios` must be a Ratios\(\.\.\.\) or \"auto\", got 0\.3"),
        ("ratios", None, "`ratios` must be"),
        ("ratios", "best", "`ratios` must be"),
        ("ratios", {"w_min": 0.3}, "`ratios` must be"),
        ("neuron", "max", "`neuron` must be one of 'gradient', 'aggregate', got 'max'"),
        ("scope", "row", "`scope` must be one of 'layer', 'class', got 'row'"),
        ("score", "odin", "`score` must be one of 'energy', .*, got 'odin'"),
        ("precision", "float16", "`precision` must be one of 'float32', 'float64', got 'float16'"),
        ("temperature", 0, "`temperature` must be a positive finite number, got 0"),
        ("temperature", float("nan"), "`temperature` must be a positive"),
        ("temperature", "1", "`temperature` must be a positive"),
        ("shaping", 0.9, r"`shaping` must be \"auto\", None, ReAct"),
        ("shaping", ReAct, "`shaping` must be"),
        ("shaping", "react", "`shaping` must be"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings(**{option: value})
    with pytest.raises(OptionError, match=message):
        OPNP(**{option: value})


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_detector_has_the_settings_it_was_given(settings: Settings) -> None:
    options: dict[str, Any] = {name: getattr(settings, name) for name in Settings.__slots__}
    assert OPNP(**options).settings == settings


def test_automatic_shaping_with_fixed_ratios_is_none() -> None:
    detector = fitted()
    assert detector.settings.shaping is None
    assert OPNP(ratios=Ratios()).settings.shaping == "auto"


def test_automatic_ratios_without_validation_warn() -> None:
    detector = OPNP()
    with pytest.warns(TuningWarning):
        detector.fit_features(features(), weight=weight(), bias=bias())
    assert isinstance(detector.settings.ratios, Ratios)


def test_the_warning_points_at_the_callers_line() -> None:
    with pytest.warns(TuningWarning) as caught:
        OPNP().fit_features(features(), weight=weight(), bias=bias())
    assert caught[0].filename == __file__


def test_a_temperature_is_a_float() -> None:
    assert Settings(temperature=2).temperature == 2.0
    assert type(Settings(temperature=2).temperature) is float


def test_repr_tells_options_and_state() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3), scope="class")
    assert repr(detector).startswith(
        "OPNP(ratios=Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0), neuron='gradient'"
    )
    assert "scope='class'" in repr(detector)
    assert repr(detector).endswith("# not fitted")
    detector.fit_features(features(), weight=weight(), bias=bias())
    assert repr(detector).endswith("# fitted on 60 samples, not calibrated")
    detector.calibrate_features(features(40, seed=1), keep=0.9)
    assert repr(detector).endswith("# fitted on 60 samples, calibrated on 40 at keep=0.9")

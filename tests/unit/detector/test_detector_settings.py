"""Every option: checked once, and through JSON unchanged."""

import json
from typing import Any

import pytest

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Settings
from opnp.core import MEMBERS, PANEL, SCORE_NAMES
from opnp.errors import OptionError
from opnp.fitted import PANEL_RATIOS
from tests.unit.detector.detector_world import bias, features, fused, weight

SETTINGS = [
    Settings(),
    Settings.of_fusion(),
    Settings.of_fusion(["norm", "gen"], precision="float64"),
    Settings.of_fusion(MEMBERS),
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
        {"members": 3},
        {"members": []},
        {"members": ["odin"]},
        {"members": ["gen", "gen"]},
        {"members": "gen"},
    ],
)
def test_json_of_something_else(values: dict[str, object]) -> None:
    with pytest.raises((OptionError, TypeError, KeyError)):
        Settings.from_json(values)


@pytest.mark.parametrize("values", [{"ratios": "auto"}, {"shaping": "auto"}, {"ratios": "auto", "shaping": "auto"}])
def test_json_of_the_automatic_choice_of_version_0_1(values: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"version 0\.2 does not have: it fuses scores .* Fit again with `OPNP\(\)`"):
        Settings.from_json(Settings().to_json() | values)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ratios", 0.3, r"`ratios` must be a Ratios\(\.\.\.\).*, got 0\.3"),
        ("ratios", "best", "`ratios` must be"),
        ("ratios", "auto", "`ratios` must be"),
        ("ratios", {"w_min": 0.3}, "`ratios` must be"),
        ("neuron", "max", "`neuron` must be one of 'gradient', 'aggregate', got 'max'"),
        ("scope", "row", "`scope` must be one of 'layer', 'class', got 'row'"),
        ("score", "odin", "`score` must be one of 'energy', .*, got 'odin'"),
        ("precision", "float16", "`precision` must be one of 'float32', 'float64', got 'float16'"),
        ("temperature", 0, "`temperature` must be a positive finite number, got 0"),
        ("temperature", float("nan"), "`temperature` must be a positive"),
        ("temperature", "1", "`temperature` must be a positive"),
        ("shaping", 0.9, r"`shaping` must be None, ReAct\(\.\.\.\), ASHS\(\.\.\.\) or SCALE\(\.\.\.\), got 0\.9"),
        ("shaping", ReAct, "`shaping` must be"),
        ("shaping", "auto", "`shaping` must be"),
        ("members", ["odin"], r"`members` must be one or more different names among gen, energy, .*, got .*'odin'"),
        ("members", [], "`members` must be one or more"),
        ("members", ["gen", "gen"], "`members` must be one or more different"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings(**{option: value})
    with pytest.raises(OptionError, match=message):
        OPNP(**{option: value})


def test_what_was_automatic_in_version_0_1_says_what_there_is_now() -> None:
    automatic: Any = "auto"
    with pytest.raises(OptionError, match=r'or "tuned", got \'auto\'\. "auto" was version 0\.1: `OPNP\(\)` now fuses'):
        OPNP(ratios=automatic)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_detector_has_the_settings_it_was_given(settings: Settings) -> None:
    assert OPNP.from_settings(settings).settings == settings
    if settings.members is not None:
        assert OPNP(members=settings.members, precision=settings.precision).settings == settings
        return
    options: dict[str, Any] = {name: getattr(settings, name) for name in Settings.__slots__ if name != "members"}
    assert OPNP(**options).settings == settings


def test_no_option_means_the_fusion() -> None:
    for detector in (OPNP(), OPNP(members=None), OPNP(members=PANEL), OPNP(members=list(PANEL))):
        assert detector.settings == Settings.of_fusion()
        assert detector.settings.members == PANEL
    assert OPNP().settings == Settings(members=PANEL, ratios=PANEL_RATIOS, shaping=SCALE(0.85))
    assert Ratios(w_min=0.5) == PANEL_RATIOS
    assert set(PANEL) < set(MEMBERS)
    assert OPNP(precision="float64").settings == Settings.of_fusion(precision="float64")


PAPER: dict[str, Any] = {
    "ratios": Ratios(),
    "neuron": "gradient",
    "scope": "layer",
    "temperature": 1.0,
    "score": "energy",
    "shaping": SCALE(0.85),
}


@pytest.mark.parametrize("option", PAPER)
def test_any_option_of_the_paper_means_its_method_and_goes_with_no_members(option: str) -> None:
    detector = OPNP(**{option: PAPER[option]})
    expected = Settings(shaping=SCALE(0.85)) if option == "shaping" else Settings()
    assert detector.settings == expected
    assert not detector.settings.is_fusion
    message = f"`members` choose scores to fuse, and `{option}` belongs to the pruned head alone: give one or the other"
    with pytest.raises(OptionError, match=message):
        OPNP(members=["gen"], **{option: PAPER[option]})


def test_tuned_ratios_go_with_no_members() -> None:
    with pytest.raises(OptionError, match="`ratios` belongs to the pruned head alone"):
        OPNP(members=["gen"], ratios="tuned")
    assert OPNP(ratios="tuned").settings == Settings()
    assert OPNP(ratios="tuned", shaping=SCALE(0.85), temperature=2.0).settings == Settings(
        shaping=SCALE(0.85), temperature=2.0
    )


def test_one_name_is_a_member_by_itself() -> None:
    assert OPNP(members="gen").settings.members == ("gen",)


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
    assert "members" not in repr(detector)


def test_repr_of_a_fusion_tells_its_members() -> None:
    assert repr(OPNP(members=["gen", "norm"])) == "OPNP(members=['gen', 'norm'], precision='float32')  # not fitted"
    detector = fused(90, members=["gen", "norm"]).calibrate_features(features(40, seed=1))
    assert repr(detector).endswith("precision='float32')  # fitted on 90 samples, calibrated on 40 at keep=0.95")
    assert "ratios" not in repr(detector)

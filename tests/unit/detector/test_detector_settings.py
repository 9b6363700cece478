"""Which arguments of `OPNP(...)` mean what: every option is checked once, and none is the fusion."""

from typing import Any

import pytest

from opnp import OPNP, SCALE, Ratios, ReAct, Settings
from opnp.core import PANEL
from opnp.errors import OptionError
from opnp.fitted import PANEL_RATIOS
from tests.unit.detector.detector_world import bias, features, fused, weight
from tests.unit.detector.test_fitted import SETTINGS


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ratios", 0.3, r"`ratios` must be a Ratios\(\.\.\.\).*, got 0\.3"),
        ("ratios", "best", "`ratios` must be"),
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
        ("members", ["odin"], r"`members` must be one or more different names among gen, energy, .*, got .*'odin'"),
        ("members", [], "`members` must be one or more"),
        ("members", ["gen", "gen"], "`members` must be one or more different"),
        ("members", 3, "`members` must be one or more"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any, message: str) -> None:
    for kind in (Settings, OPNP):
        with pytest.raises(OptionError, match=message):
            kind(**{option: value})


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


def test_no_option_means_the_fusion_and_one_name_a_member_by_itself() -> None:
    for detector in (OPNP(), OPNP(members=None), OPNP(members=list(PANEL))):
        assert detector.settings == Settings.of_fusion()
    assert OPNP().settings == Settings(members=PANEL, ratios=Ratios(w_min=0.5), shaping=SCALE(0.85))
    assert Ratios(w_min=0.5) == PANEL_RATIOS
    assert OPNP(members="gen").settings.members == ("gen",)


OF_THE_PAPER: dict[str, Any] = {
    "ratios": Ratios(),
    "neuron": "gradient",
    "scope": "layer",
    "temperature": 1.0,
    "score": "energy",
    "shaping": SCALE(0.85),
}


@pytest.mark.parametrize("option", OF_THE_PAPER)
def test_any_option_of_the_paper_means_its_method_and_goes_with_no_members(option: str) -> None:
    given = {option: OF_THE_PAPER[option]}
    assert OPNP(**given).settings == (Settings(shaping=SCALE(0.85)) if option == "shaping" else Settings())
    message = f"`members` choose scores to fuse, and `{option}` belongs to the pruned head alone: give one or the other"
    with pytest.raises(OptionError, match=message):
        OPNP(members=["gen"], **given)


def test_tuned_ratios_go_with_other_options_and_with_no_members() -> None:
    with pytest.raises(OptionError, match="`ratios` belongs to the pruned head alone"):
        OPNP(members=["gen"], ratios="tuned")
    assert OPNP(ratios="tuned").settings == Settings()
    assert OPNP(ratios="tuned", shaping=SCALE(0.85)).settings == Settings(shaping=SCALE(0.85))


def test_repr_tells_options_and_state() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3), scope="class")
    options = "OPNP(ratios=Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0), neuron='gradient', scope='class', "
    assert repr(detector).startswith(options)
    assert repr(detector).endswith("# not fitted")
    detector.fit_features(features(), weight=weight(), bias=bias())
    assert repr(detector).endswith("# fitted on 60 samples, not calibrated")
    assert repr(OPNP(ratios="tuned")).startswith("OPNP(ratios='tuned', neuron=")
    assert repr(OPNP(members=["gen", "norm"])) == "OPNP(members=['gen', 'norm'], precision='float32')  # not fitted"
    fusion = fused(90, members=["gen", "norm"]).calibrate_features(features(40, seed=1))
    assert repr(fusion).endswith("precision='float32')  # fitted on 90 samples, calibrated on 40 at keep=0.95")

"""What a detector knows, as values: ratios, settings, and which masks they make."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Settings
from opnp.core import MEMBERS, SCORE_NAMES
from opnp.errors import OptionError, RatioError, RatioWarning
from tests.unit.detector.detector_world import fitted

NAMES = ("w_min", "w_max", "o_min", "o_max")
SETTINGS = [
    Settings(),
    Settings.of_fusion(),
    Settings.of_fusion(["norm", "gen"], precision="float64"),
    Settings.of_fusion(MEMBERS),
    Settings(ratios=Ratios(0.7, 0.001, 0.3, 0.003), neuron="aggregate", scope="class"),
    Settings(ratios=Ratios(w_min=0.1 + 0.2), temperature=1 / 3, precision="float64"),
    *(Settings(shaping=shaping) for shaping in (None, ReAct(0.95), ASHS(0.65), SCALE(0.85))),
    *(Settings(score=score) for score in SCORE_NAMES),
]


# -------------------------------------------------------------------------------------------------------------- ratios
def test_nothing_is_pruned_by_default_and_the_order_is_that_of_the_paper() -> None:
    assert [field.name for field in dataclasses.fields(Ratios)] == list(NAMES)
    assert Ratios() == Ratios(0.0, 0.0, 0.0, 0.0)
    assert bool(fitted(Ratios()).masks.kept.all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, 1, 30, float("nan"), float("inf"), True, "0.3", None])
def test_a_ratio_out_of_range_is_named(name: str, value: Any) -> None:
    hint = r".* written as fractions: 0\.3" if value == 30 else ""
    with pytest.raises(RatioError, match=rf"`{name}` must be a fraction in \[0, 1\){hint}"):
        Ratios(**{name: value})


@pytest.mark.parametrize(("low", "high"), [("w_min", "w_max"), ("o_min", "o_max")])
@pytest.mark.parametrize("values", [(0.5, 0.5), (0.7, 0.3), (0.99, 0.5)])
def test_two_ratios_of_one_layer_must_leave_something(low: str, high: str, values: tuple[float, float]) -> None:
    with pytest.raises(RatioError, match=rf"`{low}` = .* and `{high}` = .* at least one entry must be left"):
        Ratios(**dict(zip((low, high), values, strict=True)))
    assert Ratios(w_min=0.9, o_min=0.9).o_min == 0.9  # those of different layers do not add up


def test_numbers_of_numpy_become_plain_floats() -> None:
    ratios = Ratios(w_min=np.float32(0.25), o_max=np.float64(0.5))  # type: ignore[arg-type]  # floats by any other name
    assert [type(getattr(ratios, name)) for name in NAMES] == [float] * 4
    assert (ratios.w_min, ratios.o_max) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("ratios", "names"),
    [(Ratios(w_min=0.49, w_max=0.5), "`w_min` = 0.49 and `w_max`"), (Ratios(o_min=0.49, o_max=0.5), "`o_min`")],
)
def test_ratios_that_leave_nothing_of_this_head(ratios: Ratios, names: str) -> None:
    detector = OPNP(ratios=ratios)
    with pytest.raises(RatioError, match=f"{names}.*at least one must be left"):
        detector.fit_features(torch.ones(3, 2), weight=torch.eye(2)[:, :1].expand(2, 2).contiguous(), bias=None)
    assert not detector.is_fitted


@pytest.mark.parametrize(
    ("options", "ratios", "told"),
    [
        ({}, Ratios(w_min=0.1), "8 of 32"),
        ({}, Ratios(w_min=0.25), None),  # all that was lost
        ({}, Ratios(w_max=0.9), "8 of 32"),
        ({}, Ratios(), None),
        ({"scope": "class"}, Ratios(w_min=0.25), "8 of 8"),
        ({}, Ratios(o_min=0.125), "2 of 8"),
        ({}, Ratios(o_min=0.25), None),
        ({"neuron": "aggregate"}, Ratios(o_min=0.125), None),
    ],
)
def test_a_cut_among_sensitivities_that_underflowed_is_warned_of_once(
    options: dict[str, Any], ratios: Ratios, told: str | None
) -> None:
    """The last class was lost by its bias, and with it the first two neurons, which speak for it alone."""
    generator = torch.Generator().manual_seed(0)
    rows, head = torch.rand(50, 8, generator=generator), torch.randn(4, 8, generator=generator)
    head[:3, :2] = 0
    detector, lost = OPNP(ratios=ratios, **options), torch.tensor([0.0, 0.0, 0.0, -1e4])
    if told is None:
        detector.fit_features(rows, weight=head, bias=lost)
    else:
        with pytest.warns(RatioWarning, match=rf"^A ratio cuts among {told} sensitivities") as caught:
            detector.fit_features(rows, weight=head, bias=lost)
        assert len(caught) == 1
    assert bool(detector.masks.weight.any())  # and no second warning


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1e4])
@pytest.mark.filterwarnings("ignore:A ratio cuts among")
def test_no_temperature_refuses_a_random_network(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, head = torch.rand(200, 30, generator=generator), torch.randn(20, 30, generator=generator)
    for precision in ("float32", "float64"):
        detector = OPNP(ratios=Ratios(w_min=0.3, o_max=0.1), temperature=temperature, precision=precision)
        assert int(detector.fit_features(rows, weight=head, bias=None).masks.weight.sum()) == 600 - 180


# ------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_come_back_from_json(settings: Settings) -> None:
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
        {"members": "gen"},
    ],
)
def test_json_of_something_else(values: dict[str, object]) -> None:
    with pytest.raises((OptionError, TypeError, KeyError)):
        Settings.from_json(values)


@pytest.mark.parametrize("values", [{"ratios": "auto"}, {"shaping": "auto"}])
def test_json_of_the_automatic_choice_of_version_0_1(values: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"version 0\.2 does not have: it fuses scores .* Fit again with `OPNP\(\)`"):
        Settings.from_json(Settings().to_json() | values)


def test_a_temperature_is_a_float() -> None:
    assert type(Settings(temperature=2).temperature) is float

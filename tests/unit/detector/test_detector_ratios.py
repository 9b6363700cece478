"""The four ratios: their range, their sums, what they leave."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from opnp import OPNP, Ratios
from opnp.errors import OptionError, RatioError, RatioWarning
from tests.unit.detector.detector_world import bias, features, fitted, weight

NAMES = ("w_min", "w_max", "o_min", "o_max")


def test_nothing_is_pruned_by_default() -> None:
    assert Ratios() == Ratios(w_min=0.0, w_max=0.0, o_min=0.0, o_max=0.0)
    assert bool(fitted(Ratios()).masks.kept.all())


def test_the_order_is_that_of_the_paper() -> None:
    assert [field.name for field in dataclasses.fields(Ratios)] == list(NAMES)
    assert Ratios(0.1, 0.2, 0.3, 0.4) == Ratios(w_min=0.1, w_max=0.2, o_min=0.3, o_max=0.4)


def test_ratios_are_immutable_values() -> None:
    ratios = Ratios(w_min=0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ratios.w_min = 0.5  # type: ignore[misc]  # that it cannot be done is the test
    assert len({Ratios(w_min=0.3), ratios, Ratios()}) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 30, float("nan"), float("inf"), True, "0.3", None])
def test_a_ratio_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(RatioError, match=rf"`{name}` must be a fraction in \[0, 1\)"):
        Ratios(**{name: value})


def test_percentages_get_a_hint() -> None:
    with pytest.raises(RatioError, match=r"written as fractions: 0\.3"):
        Ratios(w_min=30)


def test_a_ratio_error_is_an_option_error_and_a_value_error() -> None:
    with pytest.raises(OptionError):
        Ratios(w_min=2)
    with pytest.raises(ValueError, match="w_min"):
        Ratios(w_min=2)


@pytest.mark.parametrize(("low", "high"), [("w_min", "w_max"), ("o_min", "o_max")])
@pytest.mark.parametrize("values", [(0.5, 0.5), (0.9, 0.1), (0.7, 0.3), (0.99, 0.5)])
def test_two_ratios_of_one_layer_must_leave_something(low: str, high: str, values: tuple[float, float]) -> None:
    with pytest.raises(RatioError, match=rf"`{low}` = .* and `{high}` = .* at least one entry must be left"):
        Ratios(**dict(zip((low, high), values, strict=True)))


def test_ratios_of_different_layers_do_not_add_up() -> None:
    ratios = Ratios(w_min=0.9, o_min=0.9)
    assert (ratios.w_min, ratios.o_min) == (0.9, 0.9)


def test_numbers_of_numpy_become_plain_floats() -> None:
    ratios = Ratios(w_min=np.float32(0.25), o_max=np.float64(0.5))  # type: ignore[arg-type]  # floats by any other name
    assert [type(getattr(ratios, name)) for name in NAMES] == [float] * 4
    assert (ratios.w_min, ratios.o_max) == (0.25, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_that_rounds_to_nothing_warns(name: str) -> None:
    with pytest.warns(RatioWarning, match=rf"`{name}` = 0\.001 of \d+ entries rounds to none"):
        fitted(Ratios(**{name: 0.001}))


@pytest.mark.parametrize(
    ("ratios", "names"),
    [(Ratios(w_min=0.49, w_max=0.5), "`w_min` = 0.49 and `w_max`"), (Ratios(o_min=0.49, o_max=0.5), "`o_min`")],
)
def test_ratios_that_leave_nothing_of_this_head(ratios: Ratios, names: str) -> None:
    detector = OPNP(ratios=ratios)
    with pytest.raises(RatioError, match=f"{names}.*at least one must be left"):
        detector.fit_features(torch.ones(3, 2), weight=torch.eye(2)[:, :1].expand(2, 2).contiguous(), bias=None)
    assert not detector.is_fitted


def test_counts_follow_pythons_round() -> None:
    entries, neurons = weight().numel(), weight().shape[1]
    detector = fitted(Ratios(w_min=0.3, w_max=0.11, o_min=0.29, o_max=0.13))
    assert int((~detector.masks.weight).sum()) == round(0.3 * entries) + round(0.11 * entries)
    assert int((~detector.masks.neuron).sum()) == round(0.29 * neurons) + round(0.13 * neurons)


def test_the_scope_class_takes_the_same_count_of_each_row() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.25), scope="class")
    detector.fit_features(features(), weight=weight(), bias=bias())
    assert (~detector.masks.weight).sum(1).tolist() == [3] * 4


LOST = torch.tensor([0.0, 0.0, 0.0, -1e4])
"""A bias that switches the last of four classes off."""


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
    """The last class was lost, and with it the first two neurons, which speak for it alone."""
    generator = torch.Generator().manual_seed(0)
    rows, head = torch.rand(50, 8, generator=generator), torch.randn(4, 8, generator=generator)
    head[:3, :2] = 0
    detector = OPNP(ratios=ratios, **options)
    if told is None:
        detector.fit_features(rows, weight=head, bias=LOST)
    else:
        with pytest.warns(RatioWarning, match=rf"^A ratio cuts among {told} sensitivities") as caught:
            detector.fit_features(rows, weight=head, bias=LOST)
        assert len(caught) == 1
    assert bool(detector.masks.weight.any())  # and no second warning


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:A ratio cuts among")
def test_no_temperature_refuses_a_random_network(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, head = torch.rand(200, 30, generator=generator), torch.randn(20, 30, generator=generator)
    for precision in ("float32", "float64"):
        detector = OPNP(ratios=Ratios(w_min=0.3, o_max=0.1), temperature=temperature, precision=precision)
        kept = detector.fit_features(rows, weight=head, bias=None).masks.weight
        assert int(kept.sum()) == 600 - 180

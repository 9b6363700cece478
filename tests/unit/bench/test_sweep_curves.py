"""Which settings the curves try: what each varies, what stays, and how curves are chosen."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opnp.bench import BASE_RATIOS, PAPER_RATIOS, SweepSettings
from opnp.bench.sweep_curves import CURVES, Curve, chosen_curves, sample_sizes
from opnp.core import SCORE_NAMES
from opnp.detector import Ratios
from opnp.errors import OptionError

RATIO_NAMES = ("w_min", "w_max", "o_min", "o_max")
NAMES = [curve.about.name for curve in CURVES]


def base(ratios: Ratios = BASE_RATIOS, *, samples: int = 2500) -> SweepSettings:
    return SweepSettings(**asdict(ratios), scope="layer", neuron="gradient", temperature=1.0, score="energy",
                         training_samples=samples, seed=None)  # fmt: skip


def curve(name: str) -> Curve:
    return CURVES[NAMES.index(name)]


def settings_of(name: str, ratios: Ratios = BASE_RATIOS, *, seed: int = 0) -> list[SweepSettings]:
    return [point.settings for point in curve(name).points(base(ratios), seed)]


@pytest.mark.parametrize("each", CURVES, ids=NAMES)
def test_a_curve_changes_what_it_says_and_nothing_else(each: Curve) -> None:
    points = list(each.points(base(), 0))
    assert len({point.settings for point in points}) == len(points) > 1
    changed = {
        name
        for name in SweepSettings.__slots__
        if len({getattr(point.settings, name) for point in points}) > 1
    }  # fmt: skip
    if each.about.varies == ("part",):
        assert changed <= {*RATIO_NAMES, "neuron"}
        return
    assert changed == {*each.about.varies, *(["seed"] if each.about.name == "samples" else [])}
    for point in points:
        assert {name: getattr(point.settings, name) for name in each.about.varies} == point.varied


def test_each_ratio_by_itself_in_every_scope_and_reading() -> None:
    kinds = set()
    for each in chosen_curves(["ratios"]):
        (ratio,) = each.about.varies
        for settings in settings_of(each.about.name):
            assert all(getattr(settings, name) == 0 for name in RATIO_NAMES if name != ratio)
            kinds.add((ratio, settings.scope if ratio.startswith("w") else settings.neuron))
    weights = {(ratio, scope) for ratio in ("w_min", "w_max") for scope in ("layer", "class")}
    assert kinds == weights | {
        (ratio, reading) for ratio in ("o_min", "o_max") for reading in ("gradient", "aggregate")
    }


def test_the_partners_of_the_paper() -> None:
    assert {(each.w_max, each.o_min, each.o_max) for each in settings_of("w_min-paper")} == {(0.005, 0, 0)}
    for name, reading in (("o_min-paper", "gradient"), ("o_min-paper-aggregate", "aggregate")):
        assert {(each.o_max, each.w_min, each.neuron) for each in settings_of(name)} == {(0.3, 0, reading)}
    parts = [point.varied["part"] for point in curve("parts-paper").points(base(), 0)]
    assert parts == ["Energy", "OPP", "ONP gradient", "ONP aggregate", "OPNP gradient", "OPNP aggregate"]
    assert settings_of("parts-paper")[-1] == replace(base(PAPER_RATIOS), neuron="aggregate")


@given(
    w_min=st.floats(0, 0.99), w_max=st.floats(0, 0.005), o_min=st.floats(0, 0.69), o_max=st.floats(0, 0.3)
)  # fmt: skip
def test_the_value_of_the_base_is_on_the_curve_of_its_ratio(
    w_min: float, w_max: float, o_min: float, o_max: float
) -> None:
    ratios = Ratios(w_min=w_min, w_max=w_max, o_min=o_min, o_max=o_max)
    for name in RATIO_NAMES:
        values = [getattr(each, name) for each in settings_of(name, ratios)]
        assert getattr(ratios, name) in values
        assert values == sorted(set(values))
        assert values[0] == 0
    for each in CURVES:
        if each.about.varies != ("part",):
            for point in each.points(base(ratios), 0):
                Ratios(**{name: getattr(point.settings, name) for name in RATIO_NAMES})  # no planned point is refused
    for name in ("temperature", "samples", "scores"):
        assert all([getattr(each, ratio) for ratio in RATIO_NAMES] == list(asdict(ratios).values())
                   for each in settings_of(name, ratios))  # fmt: skip


def test_draws_count_up_from_the_seed_and_all_samples_need_none() -> None:
    drawn = [(each.training_samples, each.seed) for each in settings_of("samples", seed=7)]
    sizes = [100, 200, 500, 1000, 2000]
    assert drawn == [*((size, seed) for size in sizes for seed in range(7, 12)), (2500, None)]


def test_large_draws_are_made_once() -> None:
    drawn = [point.settings for point in curve("samples").points(base(samples=60_000), 0)]
    counts = {size: sum(each.training_samples == size for each in drawn) for size in (20_000, 50_000, 60_000)}
    assert counts == {20_000: 5, 50_000: 1, 60_000: 1}


@given(st.integers(1, 3_000_000))
def test_sample_sizes_rise_to_all(samples: int) -> None:
    sizes = sample_sizes(samples)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == samples
    assert all(str(size).rstrip("0") in ("1", "2", "5") and size >= 100 for size in sizes[:-1])
    assert all(after <= 2.5 * before for before, after in pairwise(sizes))


def test_every_score_is_tried() -> None:
    assert [each.score for each in settings_of("scores")] == list(SCORE_NAMES)
    assert {each.w_min for each in settings_of("scores-unpruned")} == {0}


def test_names_and_families_choose_curves_in_the_order_of_the_tables() -> None:
    assert chosen_curves(None) == CURVES
    chosen = [each.about.name for each in chosen_curves(["samples", "w_min-class", "paper"])]
    assert chosen == ["parts-paper", "w_min-class", "w_min-paper", "o_min-paper", "o_min-paper-aggregate", "samples"]
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("names", [["w_min", "odin"], ["odin"], []])
def test_what_is_unknown_is_refused_with_the_list(names: list[str]) -> None:
    got = "got 'odin'" if names else "got none"
    with pytest.raises(OptionError, match=rf"families \(parts, paper, ratios, .*\) or curves \(parts, .*\), {got}\.$"):
        chosen_curves(names)

"""A sweep on one model: what each curve tries, and that every point is what a fresh fit at its setting gives."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import linear

from opnp import OPNP, Ratios, accuracy
from opnp.artifact import tensors_digest
from opnp.bench import BASE_RATIOS, PAPER_RATIOS
from opnp.bench.features import ModelData, read_feature_folder
from opnp.bench.figures import detection_figures
from opnp.bench.sweep import CURVES, Curve, ModelSweep, chosen_curves, equivalent, sample_sizes, training_rows
from opnp.core import expected_calibration_error
from opnp.core.checks import Array
from opnp.data import FeatureSource, write_features, write_head
from opnp.errors import OptionError, RatioWarning
from opnp.values.sweep import SweepPoint, SweepSettings, SweptModel
from tests.unit.bench.bench_world import CLASSES, FEATURES, read_world

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
        for name in SweepSettings.__struct_fields__
        if len({getattr(point.settings, name) for point in points}) > 1
    }  # fmt: skip
    if each.about.varies == ("part",):
        assert changed <= {*RATIO_NAMES, "neuron"}
        return
    assert changed == {*each.about.varies, *(["seed"] if each.about.name == "samples" else [])}
    for point in points:
        assert {name: getattr(point.settings, name) for name in each.about.varies} == point.varied


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


@given(st.integers(1, 3_000_000))
def test_sample_sizes_rise_to_all(samples: int) -> None:
    sizes = sample_sizes(samples)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == samples
    assert all(str(size).rstrip("0") in ("1", "2", "5") and size >= 100 for size in sizes[:-1])
    assert all(after <= 2.5 * before for before, after in pairwise(sizes))


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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelData:
    return read_world(tmp_path_factory.mktemp("features") / "net")


def swept(
    model: ModelData, *names: str, ratios: Ratios = BASE_RATIOS, near: Sequence[str] = ("cifar100",)
) -> SweptModel:
    curves = chosen_curves(names) if names else CURVES
    return ModelSweep(model, frozenset(near)).result(
        curves, base(ratios, samples=len(model.train.features)), seed=0, progress=None
    )


@pytest.fixture(scope="module")
def whole(model: ModelData) -> SweptModel:
    return swept(model)


def fresh(model: ModelData, settings: SweepSettings) -> OPNP:
    """Return a detector fitted anew with these very settings."""
    detector = OPNP(
        ratios=Ratios(settings.w_min, settings.w_max, settings.o_min, settings.o_max),
        scope=settings.scope,
        neuron=settings.neuron,
        temperature=settings.temperature,
        score=settings.score,
        precision="float64",
    )
    rows: Tensor | slice = slice(None)
    if settings.seed is not None:
        rows = training_rows(len(model.train.features), settings.training_samples, seed=settings.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        return detector.fit_features(model.train.features[rows], weight=model.head.weight, bias=model.head.bias)


def require_equal_to_fresh_fits(model: ModelData, points: Sequence[SweepPoint]) -> None:
    """Judge every point the slow and obvious way: one fit a point, one set of scores at a time."""
    assert model.test.labels is not None
    for point in points:
        assert (point.status, point.reason) == ("ok", ""), point
        detector = fresh(model, point.settings)
        inside = detector.score_features(model.test.features)
        assert point.mask_digest == tensors_digest({"kept": detector.masks.kept}), f"the mask at {point.varied}"
        assert point.detection == {
            name: detection_figures(inside, detector.score_features(features)) for name, features in model.ood.items()
        }, point
        assert point.pruned_weights == int((~detector.masks.weight).sum())
        assert point.pruned_neurons == int((~detector.masks.neuron).sum())
        assert point.removed_share == pytest.approx(1 - float(detector.masks.kept.double().mean()))
        head = detector.pruned_head
        logits = linear(model.test.features.double(), head.weight.double(), head.bias.double())
        assert point.head is not None
        assert point.head.accuracy == accuracy(logits, model.test.labels)
        error = expected_calibration_error(logits.softmax(1), model.test.labels)
        assert point.head.ece == pytest.approx(error, abs=1e-12)


def test_every_point_is_what_a_fresh_fit_gives(model: ModelData, whole: SweptModel) -> None:
    assert len(whole.points) > 150
    require_equal_to_fresh_fits(model, [whole.energy, *whole.points])


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> ModelData:
    """Return a model with so many features, and so little certainty, that each step of a grid tells in the scores."""
    folder = tmp_path_factory.mktemp("smooth")
    generator = torch.Generator().manual_seed(0)
    write_head(folder / "head.safetensors", torch.randn(5, 400, generator=generator) / 20, bias=torch.zeros(5))
    for name, rows in {"train": 300, "test": 300, "ood_one": 200, "ood_two": 250}.items():
        features = torch.rand(rows, 400, generator=generator) * (1.0 if name in ("train", "test") else 0.9)
        write_features(folder / f"{name}.safetensors", features, labels=torch.arange(rows) % 5)
    return read_feature_folder(folder)


CHANGING = ("w_min", "w_min-class", "w_max", "o_min", "o_min-aggregate", "o_max", "o_max-aggregate", "w_min-paper",
            "o_min-paper", "o_min-paper-aggregate")  # fmt: skip


@pytest.mark.parametrize("name", CHANGING)
def test_neighbours_on_a_curve_differ_in_mask_and_scores(smooth: ModelData, name: str) -> None:
    points = swept(smooth, name).curve(name)
    for before, after in pairwise(points):
        assert before.varied != after.varied
        assert before.mask_digest != after.mask_digest, f"masks at {before.varied} and {after.varied}"
        assert before.detection != after.detection, f"scores at {before.varied} and {after.varied}"
    require_equal_to_fresh_fits(smooth, points)


class Counted(OPNP):
    """A detector that counts fits and prunings."""

    fits: int = 0
    prunings: int = 0

    def fit_features(self, features: Array | FeatureSource, **options: Any) -> Self:
        type(self).fits += 1
        return super().fit_features(features, **options)

    def with_ratios(self, ratios: Ratios, **options: object) -> Self:
        type(self).prunings += 1
        return super().with_ratios(ratios, **options)  # type: ignore[arg-type]  # passed on as they came


def test_what_curves_share_is_computed_once(model: ModelData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.bench.sweep.OPNP", Counted)
    found = swept(model)
    settings = {equivalent(point.settings) for point in found.points}
    assert Counted.fits == len({(each.temperature, each.training_samples, each.seed) for each in settings})
    assert Counted.prunings == len(settings) < len(found.points) - 20
    for one in found.points:
        for other in found.points:
            if equivalent(one.settings) == equivalent(other.settings):
                assert replace(one, curve="", varied={}, settings=other.settings) == replace(other, curve="", varied={})


def test_a_ratio_that_leaves_nothing_is_a_point_with_a_reason(model: ModelData) -> None:
    point = swept(model, "w_min-class", ratios=Ratios(w_min=0.99)).curve("w_min-class")[-1]
    assert point.varied == {"w_min": 0.99}
    assert point.status == "failed"
    assert f"remove {FEATURES} + 0 of {FEATURES} entries: at least one must be left" in point.reason
    assert (point.detection, point.mean, point.head, point.mask_digest) == (None, None, None, None)


def test_a_ratio_that_rounds_to_none_is_a_note(whole: SweptModel) -> None:
    point = whole.curve("w_max")[1]
    assert point.varied == {"w_max": 0.0005}
    assert len(point.notes) == 1
    assert f"`w_max` = 0.0005 of {CLASSES * FEATURES} entries rounds to none" in point.notes[0]
    assert point.detection == whole.energy.detection
    assert whole.curve("w_min")[4].notes == ()


def test_without_labels_there_are_no_figures_of_the_head(tmp_path: Path) -> None:
    found = swept(read_world(tmp_path / "net", has_labels=False, has_bias=False), "parts")
    assert all(point.head is None and point.status == "ok" for point in found.points)


def test_the_global_random_state_is_left_alone(model: ModelData) -> None:
    before = torch.get_rng_state()
    swept(model, "samples")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 3])
def test_draws_are_nested_and_differ_by_seed(seed: int) -> None:
    rows = [training_rows(1000, samples, seed=seed) for samples in (100, 200, 1000)]
    for small, large in pairwise(rows):
        assert set(small.tolist()) < set(large.tolist())
    assert rows[-1].tolist() == list(range(1000))
    assert rows[0].tolist() != training_rows(1000, 100, seed=seed + 1).tolist()

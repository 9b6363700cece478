"""What figures are drawn from: every number is that of the record, or that of the core."""

from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.metrics import auc

from opnp.core import aupr, auroc, fpr_at_tpr
from opnp.detector import Ratios
from opnp.errors import EmptyDataError, OptionError
from opnp.report.figures_page import page_figure
from opnp.report.record_series import calibration_series, pruning_series, ranking_series, sensitivity_series
from opnp.report.results import models_of_bench, models_of_demo
from opnp.report.score_series import (
    area_under_roc,
    curve_series,
    keeping_threshold,
    precision_points,
    roc_points,
    score_series,
)
from opnp.report.sweep_series import grid_series, ratio_series
from opnp.values.figures import Nearness
from opnp.values.sweep import SweptModel
from tests.unit.report.report_world import (
    MODEL,
    bench_record,
    demo_record,
    first_version_record,
    fusion_record,
    head_pictures,
    scores_by_set,
    sweep_record,
)

Found = TypeVar("Found")
Scores = NDArray[np.float64]
# Few levels, so that ties are common.
scores_with_ties = arrays(np.float64, st.integers(1, 60), elements=st.integers(-4, 4).map(float))
SIDES: dict[str, Nearness] = {"far": "far", "near": "near"}
MODELS = models_of_bench(bench_record())
SWEEP = sweep_record()
SWEPT: SweptModel = next(model for model in SWEEP.models if model.model == MODEL)
GRID = next(curve for curve in SWEEP.curves if curve.name == "w_min-o_min")
RATIOS = ("w_min", "w_max", "o_min", "o_max")


def there(found: Found | None) -> Found:
    assert found is not None
    return found


def chosen(**ratios: float) -> dict[str, object]:
    return {"ratios": dict.fromkeys(RATIOS, 0.0) | ratios}


# ------------------------------------------------------------------------------------------------- heads


def test_sensitivities_and_pruning_are_drawn_as_counted() -> None:
    pictures = head_pictures("m", Ratios(w_min=0.3, w_max=0.01, o_min=0.1, o_max=0.05))
    series = sensitivity_series(pictures)
    weights, neurons = series.panels
    counted = [[sum(each) for each in (panel.picture.lowest, panel.picture.highest)] for panel in series.panels]
    assert counted == [[144, 5], [4, 2]]
    assert (weights.removed_text, neurons.name) == ("30.0 % lowest and 1.0 % highest removed", "neurons")
    assert f"{100 * weights.picture.mean:.1f} % of the largest sensitivity" in series.title
    pruning = pruning_series(pictures)
    gone = 100 * (1 - sum(pictures.weights.after) / sum(pictures.weights.before))
    assert pruning.title == f"Pruning removes {gone:.1f} % of the weights and 6 of 40 neurons"
    assert pruning.removed_ranks == ((0, 4), (38, 40))
    norms = pruning.neurons.norm_after
    assert not any(norms[:4] + norms[38:])
    assert all(norms[4:38])
    assert sensitivity_series(head_pictures("m", Ratios())).panels[0].removed_text == "none removed"


def test_counts_are_logarithmic_where_the_tail_is_long() -> None:
    pictures, zeros = head_pictures("m", Ratios()), (0, 0, 0, 0)
    long = replace(
        pictures.weight_sensitivity,
        edges=(0.0, 0.25, 0.5, 0.75, 1.0),
        kept=(900, 20, 9, 1),
        lowest=zeros,
        highest=zeros,
    )
    short = replace(long, kept=(12, 9, 7, 3))
    series = sensitivity_series(replace(pictures, weight_sensitivity=long, neuron_sensitivity=short))
    assert [panel.is_log for panel in series.panels] == [True, False]


# ----------------------------------------------------------------------------------- calibration, ranking


def test_reliability_bars_add_up_to_the_calibration_error() -> None:
    drawn = 0
    for model in MODELS:
        for row in model.methods:
            series = calibration_series(model.model, row)
            assert (series is None) == ("members" in row.settings)
            for panel in () if series is None else series.panels:
                drawn += 1
                figures = panel.figures
                assert [value or 0.0 for value in panel.right] == list(figures.bin_accuracy)
                assert [value or 0.0 for value in panel.confidence] == list(figures.bin_confidence)
                assert [value is None for value in panel.right] == [count == 0 for count in figures.bin_count]
                gaps = [
                    count * abs(right - confidence)
                    for count, right, confidence in zip(figures.bin_count, panel.right, panel.confidence, strict=True)
                    if right is not None and confidence is not None
                ]
                assert sum(gaps) / sum(figures.bin_count) == pytest.approx(figures.ece, abs=1e-9)
    assert drawn > 200


@pytest.mark.parametrize(
    ("given_settings", "order", "title"),
    [
        (None, (0, 1), "Shaping raises the calibration error (ECE) from {0:.1f} % to {1:.1f} %"),
        (
            chosen(w_min=0.3) | {"shaping": None},
            (1, 0),
            "Pruning lowers the calibration error (ECE) from {1:.1f} % to {0:.1f} %",
        ),
        (
            chosen(w_min=0.3) | {"shaping": "scale"},
            (0, 0),
            "Shaping and pruning leave the calibration error at {0:.1f} % (ECE)",
        ),
    ],
)
def test_the_calibration_error_stands_in_the_title(
    given_settings: dict[str, object] | None, order: tuple[int, int], title: str
) -> None:
    [model] = models_of_bench(first_version_record())
    row = model.row("OPNP()")
    heads = there(row.before), there(row.after)
    settings = row.settings if given_settings is None else given_settings
    series = there(
        calibration_series(MODEL, replace(row, settings=settings, before=heads[order[0]], after=heads[order[1]]))
    )
    assert series.title == title.format(100 * heads[0].ece, 100 * heads[1].ece)


def test_a_fusion_is_read_off_no_head_and_marks_no_ratios() -> None:
    [model] = models_of_bench(fusion_record())
    row = model.row("OPNP()")
    assert row.before is not None
    assert calibration_series(MODEL, row) is None
    assert calibration_series(MODEL, replace(row, after=row.before)) is None
    grid = there(grid_series(SWEPT, GRID, settings=row.settings))
    ratios = there(ratio_series(SWEPT, settings=row.settings))
    assert (grid.chosen, grid.is_shaped) == (None, False)
    assert [panel.chosen_text for panel in ratios.panels] == [""] * 4


def test_without_labels_there_is_no_calibration_and_without_figures_no_ranking() -> None:
    [model] = models_of_demo(demo_record(scores_by_set()))
    assert calibration_series("demo", model.row("OPNP")) is None
    assert ranking_series(replace(model, methods=tuple(replace(row, mean=None) for row in model.methods))) is None


def test_methods_are_ranked_by_their_mean_auroc() -> None:
    for model in (*MODELS, *models_of_bench(first_version_record()), *models_of_bench(fusion_record())):
        series = there(ranking_series(model))
        aurocs = [row.mean.auroc for row in series.methods if row.mean is not None]
        assert aurocs == sorted(aurocs, reverse=True)
        assert len(series.methods) + len(series.failed) == len(model.methods)
        for value, row in zip(series.values("near", "fpr95"), series.methods, strict=True):
            assert value == (None if row.near is None else row.near.fpr95)
        places = {role: place for place, role in series.marked.items()}
        assert {role: series.methods[place].method for role, place in places.items()} == {
            "chosen": "OPNP()",
            "baseline": "Energy, rest of test",
        }
        best = f"{series.methods[0].method} has the highest mean AUROC, {100 * aurocs[0]:.1f} %"
        place = places["chosen"] + 1
        first = "" if place == 1 else f"OPNP() is {place} of {len(aurocs)} by mean AUROC; "
        assert series.title == first + best


# ------------------------------------------------------------------------------------------------- sweeps


def test_points_of_each_ratio_are_those_of_the_sweep() -> None:
    for model in SWEEP.models:
        series = there(ratio_series(model, settings=chosen(w_min=0.3)))
        assert {panel.ratio: panel.chosen for panel in series.panels} == dict.fromkeys(RATIOS, 0.0) | {"w_min": 0.3}
        for panel in series.panels:
            points = model.curve(panel.ratio)
            assert panel.values == tuple(point.varied[panel.ratio] for point in points)
            sides = [side for side in ("near", "far") if getattr(model.energy, side) is not None]
            assert [line.nearness for line in panel.lines] == sides
            for line in panel.lines:
                assert line.means == tuple(getattr(point, line.nearness) for point in points)
                assert line.energy == getattr(model.energy, line.nearness)


def test_the_reading_that_was_chosen_is_drawn() -> None:
    series = there(ratio_series(SWEPT, settings={"neuron": "aggregate", "scope": "class"}))
    curves = ("w_min-class", "w_max-class", "o_min-aggregate", "o_max-aggregate")
    for panel, curve in zip(series.panels, curves, strict=True):
        assert panel.lines[-1].means == tuple(point.far for point in SWEPT.curve(curve))
        assert panel.chosen is None


def test_places_on_the_axis_ascend_and_zero_is_among_the_marks() -> None:
    series = there(ratio_series(SWEPT))
    assert [panel.is_log for panel in series.panels] == [False, True, False, True]
    for panel in series.panels:
        places = [panel.position(value) for value in panel.values]
        assert places == sorted(set(places))
        assert panel.ticks[0] == (panel.position(0.0), "0")
        assert places[0] < panel.position(panel.values[1] / 2) < places[1]


def test_the_best_ratio_stands_in_the_title() -> None:
    series = there(ratio_series(SWEPT))
    points = [(point.far.auroc, name) for name in RATIOS for point in SWEPT.curve(name) if point.far is not None]
    assert f"far AUROC {100 * max(points)[0]:.1f} % at rho_{max(points)[1]} = " in series.title
    points_alike = tuple(replace(point, far=SWEPT.energy.far) for point in SWEPT.points)
    harmless = there(ratio_series(replace(SWEPT, points=points_alike)))
    assert "far AUROC no ratio gains" in harmless.title
    assert ratio_series(replace(SWEPT, points=SWEPT.curve("temperature"))) is None


def test_cells_of_the_heat_map_are_those_of_the_sweep() -> None:
    for model in SWEEP.models:
        series = there(grid_series(model, GRID, settings=chosen(w_min=0.3, o_min=0.1)))
        points = model.curve(GRID.name)
        assert series.chosen == (series.x_values.index(0.3), series.y_values.index(0.1))
        for panel in series.panels:
            for point in points:
                row = series.y_values.index(float(point.varied[series.y]))
                column = series.x_values.index(float(point.varied[series.x]))
                assert panel.values[row][column] == getattr(getattr(point, panel.nearness), panel.metric)
            pick = max if panel.metric == "auroc" else min
            filled = [value for line in panel.values for value in line if value is not None]
            assert (panel.best_value, len(filled)) == (pick(filled), len(points))
    assert all(grid_series(SWEPT, curve) is None for curve in SWEEP.curves if curve != GRID)


def test_a_failed_point_leaves_its_cell_empty() -> None:
    [first, *others] = SWEPT.curve(GRID.name)
    failed = replace(first, status="failed", near=None, far=None)
    series = there(grid_series(replace(SWEPT, points=(failed, *others)), GRID))
    assert [panel.values[0][0] for panel in series.panels] == [None] * 4


@pytest.mark.parametrize(
    "given_settings", [chosen(w_min=0.31), chosen(w_min=0.3, w_max=0.01), {"ratios": "auto"}, None]
)
def test_ratios_off_the_grid_are_not_marked(given_settings: dict[str, object] | None) -> None:
    series = there(grid_series(SWEPT, GRID, settings=given_settings))
    assert series.chosen is None
    assert page_figure(series)["layout"]["annotations"][-1]["text"] == "orange frame: the best"


@pytest.mark.parametrize(("shaping", "words"), [(None, ""), ({"name": "scale"}, ", without the shaping")])
def test_ratios_that_were_chosen_with_shaping_say_that_it_is_not_drawn(shaping: object, words: str) -> None:
    given_settings = chosen() | {"shaping": shaping}
    grid = there(grid_series(SWEPT, GRID, settings=given_settings))
    ratios = there(ratio_series(SWEPT, settings=given_settings))
    assert grid.frames == f"framed: the best; dashed: ratios chosen by OPNP{words}"
    titles = [page_figure(ratios)["layout"][f"xaxis{number}"]["title"]["text"] for number in ("", "2")]
    assert all(title.endswith(f"lowest, chosen 0{words}") for title in titles)
    notes = [note["text"] for note in page_figure(grid)["layout"]["annotations"]]
    assert f"orange frame: the best; dashed frame: ratios chosen by OPNP{words}" in notes


# ------------------------------------------------------------------------------------------------- scores


@given(scores_with_ties, scores_with_ties)
def test_areas_under_the_curves_are_those_of_the_core(inside: Scores, outside: Scores) -> None:
    tensors = torch.from_numpy(inside), torch.from_numpy(outside)
    roc, precision = roc_points(inside, outside), precision_points(inside, outside)
    assert auc(roc.x, roc.y) == pytest.approx(auroc(*tensors), abs=1e-12)
    assert area_under_roc(inside, outside) == auroc(*tensors)
    area = (np.diff(precision.x) * precision.y[1:]).sum()
    assert area == pytest.approx(aupr(*tensors, positive="id"), abs=1e-12)


@given(scores_with_ties, scores_with_ties, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_the_threshold_is_that_of_the_core(inside: Scores, outside: Scores, keep: float) -> None:
    threshold = keeping_threshold(inside, keep)
    assert np.mean(inside <= threshold) >= keep
    assert np.mean(inside < threshold) < keep
    expected = fpr_at_tpr(torch.from_numpy(inside), torch.from_numpy(outside), tpr=keep)
    assert np.mean(outside <= threshold) == expected


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0, 3), st.sampled_from([1, 2, 40]))
def test_thinning_moves_no_area_visibly(seed: int, shift: float, digits: int) -> None:
    draw = np.random.default_rng(seed)
    inside, outside = draw.normal(0, 1, 4000).round(digits), draw.normal(shift, 1.5, 3000).round(digits)
    curve = curve_series("m", {"a": {"test": inside, "ood_far": outside}}, {"far": "far"}).panels[0].curves[0]
    tensors = torch.from_numpy(inside), torch.from_numpy(outside)
    assert max(len(curve.kept_ood), len(curve.recall)) <= 512
    assert (curve.kept_ood[0], curve.kept_id[0], curve.kept_ood[-1], curve.kept_id[-1]) == (0, 0, 1, 1)
    assert auc(curve.kept_ood, curve.kept_id) == pytest.approx(auroc(*tensors), abs=1e-3)
    area = (np.diff(curve.recall) * np.array(curve.precision)[1:]).sum()
    assert area == pytest.approx(aupr(*tensors), abs=4e-3)
    assert curve.auroc == auroc(*tensors)
    assert curve.aupr == pytest.approx(aupr(*tensors), abs=1e-12)


@given(scores_with_ties, scores_with_ties, st.integers(1, 20))
def test_histograms_hold_every_sample(inside: Scores, outside: Scores, bins: int) -> None:
    [panel] = score_series("m", {"a": {"test": inside, "ood_far": outside}}, {"far": "far"}, bins=bins).panels
    assert (sum(panel.id_counts), sum(panel.ood_counts)) == (len(inside), len(outside))
    assert len(panel.edges) == bins + 1
    assert sum(panel.id_shares) == pytest.approx(1)
    assert panel.threshold == keeping_threshold(inside, 0.95)


def test_a_few_far_out_scores_do_not_squash_the_histogram() -> None:
    scores = scores_by_set(samples=10_000)
    scores["test"][0] = 1e9
    [panel, _] = score_series("m", {"a": scores}, SIDES).panels
    assert panel.edges[-1] < 100
    assert sum(panel.id_counts) == 10_000


def test_rows_are_near_before_far_and_columns_are_methods() -> None:
    scores = {"Energy, rest of test": scores_by_set(0), "OPNP()": scores_by_set(1)}
    series = score_series("m", scores, SIDES)
    order = [(name, method) for name in ("near", "far") for method in scores]
    assert [(panel.set, panel.method) for panel in series.panels] == order
    for name, method in order:
        panel, by_set = series.panel(name, method), scores[method]
        assert panel.kept_ood == np.mean(by_set[f"ood_{name}"] <= keeping_threshold(by_set["test"], 0.95))
    means = [np.mean([panel.kept_ood for panel in series.panels if panel.method == method]) for method in scores]
    assert f"OPNP() {100 * means[1]:.1f} % and Energy {100 * means[0]:.1f} %" in series.title
    assert [panel.set for panel in curve_series("m", scores, SIDES).panels] == ["near", "far"]


def test_a_set_that_a_method_lacks_is_left_out() -> None:
    first, second = scores_by_set(0), scores_by_set(1)
    del second["ood_near"]
    assert score_series("m", {"a": first, "b": second}, SIDES).sets == ("far",)
    del second["ood_far"]
    with pytest.raises(EmptyDataError, match="no OOD set that every method has scores for"):
        score_series("m", {"a": first, "b": second}, SIDES)


@pytest.mark.parametrize("keep", [0.0, 1.0, 95.0])
def test_keep_must_be_a_share(keep: float) -> None:
    with pytest.raises(OptionError, match=r"`keep` must lie between 0 and 1, got .* Give 0\.95 for 95 %"):
        keeping_threshold(np.array([1.0]), keep)


def test_scores_must_be_there() -> None:
    with pytest.raises(EmptyDataError, match="no ID scores"):
        keeping_threshold(np.array([]), 0.95)
    with pytest.raises(EmptyDataError, match="at least one ID score and one OOD score"):
        roc_points(np.array([1.0]), np.array([]))

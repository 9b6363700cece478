import numpy as np
import pytest
from msgspec.structs import replace

from opnp.report.figures_page import page_figure
from opnp.report.results import ReportedModel, models_of_bench, models_of_demo
from opnp.report.series import (
    calibration_series,
    grid_series,
    pruning_series,
    ranking_series,
    ratio_series,
    sensitivity_series,
)
from opnp.values.sweep import SweepRecord
from tests.unit.report.report_world import (
    MODEL,
    RECORDS,
    bench_record,
    demo_record,
    first_version_record,
    fusion_record,
    pictures_of_head,
    scores_by_set,
    small_head,
)


@pytest.fixture(scope="module")
def models() -> tuple[ReportedModel, ...]:
    return models_of_bench(bench_record())


@pytest.fixture(scope="module")
def sweep() -> SweepRecord:
    return SweepRecord.from_json((RECORDS / "sweep.json").read_text(encoding="utf-8"))


def chosen(**ratios: float) -> dict[str, object]:
    return {"ratios": {"w_min": 0.0, "w_max": 0.0, "o_min": 0.0, "o_max": 0.0} | ratios}


def test_reliability_bars_are_those_of_the_record(models: tuple[ReportedModel, ...]) -> None:
    drawn = 0
    for model in models:
        for row in model.methods:
            series = calibration_series(model.model, row)
            given = [figures for figures in (row.before, row.after) if figures is not None]
            assert (series is None) == ("members" in row.settings)
            if series is None:
                continue
            for panel, figures in zip(series.panels, given, strict=True):
                drawn += 1
                assert (panel.accuracy, panel.ece, panel.counts) == (figures.accuracy, figures.ece, figures.bin_count)
                empty = [count == 0 for count in figures.bin_count]
                assert [value is None for value in panel.right] == empty
                assert [value or 0.0 for value in panel.right] == list(figures.bin_accuracy)
                assert [value or 0.0 for value in panel.confidence] == list(figures.bin_confidence)
                gaps = [
                    count * abs(right - confidence)
                    for count, right, confidence in zip(panel.counts, panel.right, panel.confidence, strict=True)
                    if right is not None and confidence is not None
                ]
                assert sum(gaps) / sum(panel.counts) == pytest.approx(panel.ece, abs=1e-9)
    assert drawn > 200


def test_the_calibration_error_stands_in_the_title() -> None:
    [model] = models_of_bench(first_version_record())
    row = model.row("OPNP()")
    series = calibration_series(MODEL, row)
    assert series is not None
    assert row.before is not None
    assert row.after is not None
    assert series.change == "shaping"
    assert series.title == (
        f"Shaping raises the calibration error (ECE) from {100 * row.before.ece:.1f} % to {100 * row.after.ece:.1f} %"
    )
    pruned = replace(row, settings=chosen(w_min=0.3) | {"shaping": None}, before=row.after, after=row.before)
    series = calibration_series(MODEL, pruned)
    assert series is not None
    assert series.title.startswith("Pruning lowers the calibration error (ECE) from ")
    series = calibration_series(
        MODEL, replace(row, settings=chosen(w_min=0.3) | {"shaping": "scale"}, after=row.before)
    )
    assert series is not None
    assert series.title.startswith("Shaping and pruning leave the calibration error at ")


def test_a_fusion_is_read_off_no_head_and_marks_no_ratios(sweep: SweepRecord) -> None:
    [model] = models_of_bench(fusion_record())
    row = model.row("OPNP()")
    assert row.before is not None
    assert calibration_series(MODEL, row) is None
    assert calibration_series(MODEL, replace(row, after=row.before)) is None
    swept = next(each for each in sweep.models if each.model == MODEL)
    curve = next(each for each in sweep.curves if each.name == "w_min-o_min")
    grid, ratios = grid_series(swept, curve, settings=row.settings), ratio_series(swept, settings=row.settings)
    assert grid is not None
    assert (grid.chosen, grid.is_shaped) == (None, False)
    assert ratios is not None
    assert [panel.chosen_text for panel in ratios.panels] == [""] * 4


def test_without_labels_there_is_no_calibration() -> None:
    [model] = models_of_demo(demo_record(scores_by_set()))
    assert calibration_series("demo", model.row("OPNP")) is None


def test_points_of_each_ratio_are_those_of_the_sweep(sweep: SweepRecord) -> None:
    for model in sweep.models:
        series = ratio_series(model, settings=chosen(w_min=0.3))
        assert series is not None
        assert [panel.ratio for panel in series.panels] == ["w_min", "w_max", "o_min", "o_max"]
        assert [panel.chosen for panel in series.panels] == [0.3, 0.0, 0.0, 0.0]
        for panel in series.panels:
            points = model.curve(panel.ratio)
            assert panel.values == tuple(point.varied[panel.ratio] for point in points)
            sides = [side for side in ("near", "far") if getattr(model.energy, side) is not None]
            assert [line.nearness for line in panel.lines] == sides
            for line in panel.lines:
                assert line.auroc == tuple(getattr(point, line.nearness).auroc for point in points)
                assert line.fpr95 == tuple(getattr(point, line.nearness).fpr95 for point in points)
                energy = getattr(model.energy, line.nearness)
                assert (line.energy_fpr95, line.energy_auroc) == (energy.fpr95, energy.auroc)


def test_the_reading_that_was_chosen_is_drawn(sweep: SweepRecord) -> None:
    [model, *_] = sweep.models
    settings = {"neuron": "aggregate", "scope": "class"}
    series = ratio_series(model, settings=settings)
    assert series is not None
    for panel, curve in zip(
        series.panels, ("w_min-class", "w_max-class", "o_min-aggregate", "o_max-aggregate"), strict=True
    ):
        points = model.curve(curve)
        [line] = [line for line in panel.lines if line.nearness == "far"]
        assert line.auroc == tuple(point.far.auroc for point in points if point.far is not None)
        assert panel.chosen is None


def test_places_on_the_axis_ascend_and_zero_is_among_the_marks(sweep: SweepRecord) -> None:
    [model, *_] = sweep.models
    series = ratio_series(model)
    assert series is not None
    assert [panel.is_log for panel in series.panels] == [False, True, False, True]
    for panel in series.panels:
        places = [panel.position(value) for value in panel.values]
        assert places == sorted(set(places))
        assert panel.ticks[0] == (panel.position(0.0), "0")
        between = panel.position(panel.values[1] / 2)
        assert places[0] < between < places[1]


def test_the_best_ratio_stands_in_the_title(sweep: SweepRecord) -> None:
    model = next(model for model in sweep.models if model.model == MODEL)
    series = ratio_series(model)
    assert series is not None
    best = max(
        (point.far.auroc, name)
        for name in ("w_min", "w_max", "o_min", "o_max")
        for point in model.curve(name)
        if point.far is not None
    )
    assert f"far AUROC {100 * best[0]:.1f} % at rho_{best[1]} = " in series.title
    harmless = replace(model, points=tuple(replace(point, far=model.energy.far) for point in model.points))
    series = ratio_series(harmless)
    assert series is not None
    assert "far AUROC no ratio gains" in series.title


def test_a_sweep_without_ratios_has_no_such_figure(sweep: SweepRecord) -> None:
    [model, *_] = sweep.models
    assert ratio_series(replace(model, points=model.curve("temperature"))) is None


def test_cells_of_the_heat_map_are_those_of_the_sweep(sweep: SweepRecord) -> None:
    curve = next(curve for curve in sweep.curves if curve.name == "w_min-o_min")
    for model in sweep.models:
        series = grid_series(model, curve, settings=chosen(w_min=0.3, o_min=0.1))
        assert series is not None
        points = model.curve(curve.name)
        assert series.chosen == (series.x_values.index(0.3), series.y_values.index(0.1))
        for panel in series.panels:
            for point in points:
                row = series.y_values.index(float(point.varied[series.y]))
                column = series.x_values.index(float(point.varied[series.x]))
                assert panel.values[row][column] == getattr(getattr(point, panel.nearness), panel.metric)
            pick = max if panel.metric == "auroc" else min
            assert panel.best_value == pick(value for line in panel.values for value in line if value is not None)
            assert sum(value is not None for line in panel.values for value in line) == len(points)


def test_a_failed_point_leaves_its_cell_empty(sweep: SweepRecord) -> None:
    curve = next(curve for curve in sweep.curves if curve.name == "w_min-o_min")
    [model, *_] = sweep.models
    [first, *others] = model.curve(curve.name)
    failed = replace(first, status="failed", near=None, far=None)
    series = grid_series(replace(model, points=(failed, *others)), curve)
    assert series is not None
    assert [panel.values[0][0] for panel in series.panels] == [None] * 4


def test_ratios_off_the_grid_are_not_marked(sweep: SweepRecord) -> None:
    curve = next(curve for curve in sweep.curves if curve.name == "w_min-o_min")
    [model, *_] = sweep.models
    for settings in (chosen(w_min=0.31), chosen(w_min=0.3, w_max=0.01), {"ratios": "auto"}, None):
        series = grid_series(model, curve, settings=settings)
        assert series is not None
        assert series.chosen is None


def test_ratios_that_were_chosen_with_shaping_say_that_it_is_not_drawn(sweep: SweepRecord) -> None:
    curve = next(curve for curve in sweep.curves if curve.name == "w_min-o_min")
    [model, *_] = sweep.models
    plain = chosen(w_min=0.0, o_min=0.0)
    for settings, words in ((plain, ""), ({**plain, "shaping": {"name": "scale"}}, ", without the shaping")):
        grid, ratios = grid_series(model, curve, settings=settings), ratio_series(model, settings=settings)
        assert grid is not None
        assert ratios is not None
        assert grid.frames == f"framed: the best; dashed: ratios chosen by OPNP{words}"
        titles = [page_figure(ratios)["layout"][f"xaxis{number}"]["title"]["text"] for number in ("", "2")]
        assert all(title.endswith(f"lowest, chosen 0{words}") for title in titles)
        notes = [note["text"] for note in page_figure(grid)["layout"]["annotations"]]
        assert f"orange frame: the best; dashed frame: ratios chosen by OPNP{words}" in notes
    bare = grid_series(model, curve)
    assert bare is not None
    assert [note["text"] for note in page_figure(bare)["layout"]["annotations"]][-1] == "orange frame: the best"


def test_a_curve_over_one_ratio_is_no_heat_map(sweep: SweepRecord) -> None:
    assert all(grid_series(sweep.models[0], curve) is None for curve in sweep.curves if curve.name != "w_min-o_min")


def test_methods_are_ranked_by_their_mean_auroc(models: tuple[ReportedModel, ...]) -> None:
    for model in (*models, *models_of_bench(first_version_record()), *models_of_bench(fusion_record())):
        series = ranking_series(model)
        assert series is not None
        aurocs = [each.auroc for each in series.methods]
        assert aurocs == sorted(aurocs, reverse=True)
        assert len(series.methods) + len(series.failed) == len(model.methods)
        for each in series.methods:
            row = model.row(each.method)
            assert row.mean is not None
            assert each.auroc == row.mean.auroc
            assert (each.near_fpr95, each.far_fpr95) == tuple(
                None if side is None else side.fpr95 for side in (row.near, row.far)
            )
        roles = {each.role: each.method for each in series.methods if each.role != "other"}
        assert roles == {"chosen": "OPNP()", "baseline": "Energy, rest of test"}
        place = 1 + [each.method for each in series.methods].index("OPNP()")
        best = f"{series.methods[0].method} has the highest mean AUROC, {100 * aurocs[0]:.1f} %"
        first = "" if place == 1 else f"OPNP() is {place} of {len(aurocs)} by mean AUROC; "
        assert series.title == first + best


def test_nothing_ran_nothing_is_ranked(models: tuple[ReportedModel, ...]) -> None:
    rows = tuple(replace(row, mean=None) for row in models[0].methods)
    assert ranking_series(replace(models[0], methods=rows)) is None


def test_sensitivities_are_drawn_as_counted() -> None:
    pictures = pictures_of_head("m", *small_head(), ratios=(0.3, 0.01, 0.1, 0.05))
    series = sensitivity_series(pictures)
    assert [panel.name for panel in series.panels] == ["weights", "neurons"]
    weights, neurons = series.panels
    assert (sum(weights.counts), sum(neurons.counts)) == (12 * 40, 40)
    assert (sum(weights.lowest), sum(weights.highest)) == (144, 5)
    assert (sum(neurons.lowest), sum(neurons.highest)) == (4, 2)
    assert weights.removed_text == "30.0 % lowest and 1.0 % highest removed"
    assert f"{100 * weights.mean:.1f} % of the largest sensitivity" in series.title
    whole = sensitivity_series(pictures_of_head("m", *small_head(), ratios=(0, 0, 0, 0)))
    assert whole.panels[0].removed_text == "none removed"


def test_counts_are_logarithmic_where_the_tail_is_long() -> None:
    picture = pictures_of_head("m", *small_head())
    edges, mean = (0.0, 0.25, 0.5, 0.75, 1.0), 0.1
    zeros = (0, 0, 0, 0)
    long = replace(
        picture.weight_sensitivity, edges=edges, mean=mean, kept=(900, 20, 9, 1), lowest=zeros, highest=zeros
    )
    short = replace(long, kept=(12, 9, 7, 3))
    series = sensitivity_series(replace(picture, weight_sensitivity=long, neuron_sensitivity=short))
    assert [panel.is_log for panel in series.panels] == [True, False]


def test_pruning_is_summed_up_from_the_counts() -> None:
    pictures = pictures_of_head("m", *small_head(), ratios=(0.3, 0.0, 0.1, 0.05))
    series = pruning_series(pictures)
    before, after = np.sum(pictures.weights.before), np.sum(pictures.weights.after)
    assert series.title == f"Pruning removes {100 * (1 - after / before):.1f} % of the weights and 6 of 40 neurons"
    assert series.removed_ranks == ((0, 4), (38, 40))
    first, second = series.removed_ranks
    norms = series.neurons.norm_after
    assert not any(norms[first[0] : first[1]])
    assert not any(norms[second[0] : second[1]])
    assert all(norms[first[1] : second[0]])

"""Figures: what is drawn is the record, every specification is one of Vega-Lite, and files are the same every time."""

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import altair as alt
import numpy as np
import pytest
import torch
from altair.utils.schemapi import debug_mode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.metrics import auc

from opnp.core import aupr, auroc, fpr_at_tpr
from opnp.detector import Ratios
from opnp.errors import DataFileError, EmptyDataError, MissingExtraError, OptionError
from opnp.report import Figure, named_figures, read_results, write_figures
from opnp.report.explorer import keeping_threshold
from opnp.report.figures import FORMATS, figure_bytes
from opnp.report.figures_of_heads import calibration_figure, pruning_figure, sensitivity_figure
from opnp.report.figures_of_methods import members_figure, ranking_figure, regret_figure, regrets_figure
from opnp.report.figures_of_scores import Curve, curves_figure, scores_figure
from opnp.report.figures_of_sweeps import grid_figure, ratios_figure
from opnp.report.panels import COLORS, CONFIG, DASHES, INK, Panel
from opnp.report.results import models_of_bench, models_of_demo
from opnp.values.figures import Nearness
from opnp.values.sweep import SweptModel
from tests.unit.report.report_world import (
    MODEL,
    bench_folder,
    bench_record,
    demo_folder,
    demo_record,
    first_version_record,
    fusion_record,
    gallery,
    head_pictures,
    scores_by_set,
    sweep_record,
)

Found = TypeVar("Found")
Scores = NDArray[np.float64]
Rows = list[dict[str, Any]]
# Few levels, so that ties are common.
scores_with_ties = arrays(np.float64, st.integers(1, 60), elements=st.integers(-4, 4).map(float))
SIDES: dict[str, Nearness] = {"far": "far", "near": "near"}
MODELS = models_of_bench(bench_record())
SWEEP = sweep_record()
SWEPT: SweptModel = next(model for model in SWEEP.models if model.model == MODEL)
GRID = next(curve for curve in SWEEP.curves if curve.name == "w_min-o_min")
RATIOS = ("w_min", "w_max", "o_min", "o_max")
UNKNOWN = {"status": "failed", "mean": None, "near": None, "far": None, "detection": None}


def there(found: Found | None) -> Found:
    assert found is not None
    return found


def rows(panel: Panel, **wanted: object) -> Rows:
    """Return the distinct rows of a panel's data that have these values, in their order."""
    found: Rows = []
    specification = panel.specification
    for layer in specification["layer"]:
        given = layer.get("data", specification.get("data"))
        for row in given["values"] if "values" in given else specification["datasets"][given["name"]]:
            if wanted.items() <= row.items() and row not in found:
                found.append(row)
    return found


def drawn(panel: Panel, column: str, **wanted: object) -> list[Any]:
    return [row[column] for row in rows(panel, **wanted) if column in row]


def near(values: Any) -> Any:
    """Return fractions as they are drawn: in per cent, to five digits."""
    return pytest.approx([100 * value for value in values], rel=1e-4)


def chosen(**ratios: float) -> dict[str, object]:
    return {"ratios": dict.fromkeys(RATIOS, 0.0) | ratios}


@pytest.fixture(scope="module", autouse=True)
def unchecked() -> Iterator[None]:
    """Build figures without a check of each part: one test checks all of them as a whole."""
    with debug_mode(arg=False):
        yield


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Figure, ...]:
    folder = tmp_path_factory.mktemp("results")
    found = (
        *named_figures(read_results(demo_folder(folder / "demo"))),
        *named_figures(read_results(bench_folder(folder / "bench", first_version_record()))),
    )
    return tuple(figure for figure in found if figure.model in ("demo", MODEL))


# ----------------------------------------------------------------------------------------------- all figures


def test_every_figure_that_there_are_data_for_has_a_stable_name(figures: tuple[Figure, ...]) -> None:
    assert [figure.name for figure in figures] == [
        "figure-1-sensitivity-demo",
        "figure-2-pruning-demo",
        "figure-5-scores-demo",
        "curves-demo",
        "ranking-demo",
        "regret-demo",
        f"figure-3-ratios-{MODEL}",
        f"figure-4-calibration-{MODEL}",
        f"figure-5-scores-{MODEL}",
        f"curves-{MODEL}",
        f"heat-map-w_min-o_min-{MODEL}",
        f"ranking-{MODEL}",
        f"regret-{MODEL}",
    ]
    assert all(figure.title and len(figure.alt) > len(figure.title) for figure in figures)


def test_a_fusion_has_every_figure_but_that_of_the_head_it_is_read_off(
    figures: tuple[Figure, ...], tmp_path: Path
) -> None:
    found = named_figures(read_results(bench_folder(tmp_path, fusion_record())))
    names = [figure.name for figure in found if figure.model == MODEL]
    others = [figure.name for figure in figures if figure.model == MODEL]
    assert names == [name for name in others if not name.startswith("figure-4")]


@pytest.mark.slow
def test_every_specification_is_one_of_vega_lite_for_page_and_paper(figures: tuple[Figure, ...]) -> None:
    everything = (*figures, there(regrets_figure(MODELS)), there(members_figure([gallery("test")], method="OPNP()")))
    for figure in everything:
        alt.ConcatChart.from_dict(figure.paper)  # refuses names and values that Vega-Lite does not know
        assert len(figure.paper["concat"]) == len(figure.panels)
        assert INK not in json.dumps(figure.paper)
        parameters = [each["name"] for each in figure.paper.get("params", [])]
        assert len(parameters) == len(set(parameters)) == sum(len(panel.follows) for panel in figure.panels)
        for panel in figure.panels:
            specification = panel.specification
            alt.LayerChart.from_dict(specification)
            assert json.loads(json.dumps(specification, allow_nan=False)) == specification
            assert specification["width"] == "container"
            assert {each.parameter for each in panel.follows} == {
                each["name"] for each in specification.get("params", [])
            }


def test_colours_stand_out_against_light_and_dark_and_roles_that_meet_differ_by_more() -> None:
    for color in COLORS.values():
        assert min(contrast(color, ground) for ground in ("#ffffff", "#0d1117")) >= 3
    neutral = [CONFIG["axis"][f"{part}Color"] for part in ("label", "title", "tick", "domain")]
    assert {*neutral, CONFIG["legend"]["labelColor"], CONFIG["title"]["color"]} == {INK}
    for first, second in [("id", "ood"), ("before", "after"), ("baseline", "chosen")]:
        assert DASHES.get(first) != DASHES.get(second)


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


# ------------------------------------------------------------------------------------------------- heads


def test_sensitivities_and_pruning_are_drawn_as_counted() -> None:
    head = head_pictures("m", Ratios(w_min=0.3, w_max=0.01, o_min=0.1, o_max=0.05))
    figure = sensitivity_figure(head)
    weights, neurons = figure.panels
    counted = [
        [sum(drawn(panel, "y", part=f"{end}, removed")) for end in ("lowest", "highest")] for panel in figure.panels
    ]
    assert counted == [[144, 5], [4, 2]]
    assert sum(drawn(weights, "y", part="all")) == sum(head.weight_sensitivity.total) == 12 * 40
    assert [row["y"] for row in rows(neurons, part="all")] == [
        count for count in head.neuron_sensitivity.total if count
    ]
    assert weights.specification["title"]["text"][0] == "weights: 30.0 % lowest and 1.0 % highest removed"
    assert f"{100 * head.weight_sensitivity.mean:.1f} % of the largest sensitivity" in figure.title
    pruning = pruning_figure(head)
    gone = 100 * (1 - sum(head.weights.after) / sum(head.weights.before))
    assert pruning.title == f"Pruning removes {gone:.1f} % of the weights and 6 of 40 neurons"
    counts, norms, _, sensitivity = pruning.panels
    assert drawn(counts, "y", when="before") == list(head.weights.before)
    assert drawn(counts, "y", when="after") == list(head.weights.after)
    assert drawn(norms, "y", when="after") == pytest.approx(head.neurons.norm_after, rel=1e-4)
    assert drawn(sensitivity, "y") == pytest.approx(head.neurons.sensitivity, rel=1e-4)
    bands = [(row["x"], row["x2"]) for row in rows(norms) if "x2" in row]
    assert bands == [(0.5, 4.5), (38.5, 40.5)]
    assert "none removed" in sensitivity_figure(head_pictures("m", Ratios())).alt


@pytest.mark.parametrize(("kept", "is_log"), [((900, 20, 9, 1), True), ((12, 9, 7, 3), False)])
def test_counts_are_logarithmic_where_the_tail_is_long(kept: tuple[int, ...], is_log: bool) -> None:
    head = head_pictures("m", Ratios())
    edges, zeros = (0.0, 0.25, 0.5, 0.75, 1.0), (0, 0, 0, 0)
    spread = replace(head.weight_sensitivity, edges=edges, kept=kept, lowest=zeros, highest=zeros)
    [panel, _] = sensitivity_figure(replace(head, weight_sensitivity=spread)).panels
    y = panel.specification["layer"][0]["encoding"]["y"]
    assert (y["scale"].get("type") == "log") == is_log


def test_reliability_bars_add_up_to_the_calibration_error() -> None:
    count = 0
    for model in MODELS:
        for row in model.methods[::7]:
            figure = calibration_figure(row)
            assert (figure is None) == ("members" in row.settings)
            heads = [each for each in (row.before, row.after) if each is not None]
            for figures, panel in () if figure is None else zip(heads, figure.panels[len(heads) :], strict=True):
                bins = [each for each in rows(panel) if "count" in each]
                assert [each["count"] for each in bins] == [each for each in figures.bin_count if each]
                gaps = [each["count"] * abs(each["right"] - each["confidence"]) / 100 for each in bins]
                assert sum(gaps) / sum(figures.bin_count) == pytest.approx(figures.ece, abs=1e-5)
                count += 1
    assert count > 30


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
    row = there(model.chosen)
    heads = there(row.before), there(row.after)
    settings = row.settings if given_settings is None else given_settings
    figure = there(calibration_figure(replace(row, settings=settings, before=heads[order[0]], after=heads[order[1]])))
    assert figure.title == title.format(100 * heads[0].ece, 100 * heads[1].ece)


def test_without_labels_there_is_no_calibration_and_without_figures_no_ranking() -> None:
    [model] = models_of_demo(demo_record(scores_by_set()))
    assert calibration_figure(there(model.chosen)) is None
    failed = replace(model, methods=tuple(replace(row, **UNKNOWN) for row in model.methods))
    assert (ranking_figure(failed), regret_figure(failed), regrets_figure([failed, failed])) == (None, None, None)


# ------------------------------------------------------------------------------------------------- methods


def test_methods_are_ranked_by_their_mean_auroc() -> None:
    for model in (*MODELS, *models_of_bench(first_version_record()), *models_of_bench(fusion_record())):
        figure = there(ranking_figure(model))
        for metric, panel in zip(("auroc", "fpr95"), figure.panels, strict=True):
            for side in SIDES.values():
                means = {row.method: getattr(row, side) for row in model.methods}
                shown = {row["method"]: row["value"] for row in rows(panel, side=f"{side} OOD")}
                known = {method: getattr(mean, metric) for method, mean in means.items() if mean is not None}
                assert shown == {method: pytest.approx(100 * value, rel=1e-4) for method, value in known.items()}
        order = figure.panels[0].specification["layer"][-1]["encoding"]["y"]["sort"]
        aurocs = [there(model.row(method).mean).auroc for method in order]
        assert aurocs == sorted(aurocs, reverse=True)
        best = f"{order[0]} has the highest mean AUROC, {100 * aurocs[0]:.1f} %"
        place = order.index("OPNP()") + 1
        assert figure.title == ("" if place == 1 else f"OPNP() is {place} of {len(order)} by mean AUROC; ") + best


def test_regret_is_that_of_the_record() -> None:
    for model in MODELS:
        figure = there(regret_figure(model))
        own = there(there(model.chosen).mean).auroc
        gaps = {row["method"]: row["value"] for row in rows(figure.panels[0]) if row}
        singles = {row.method: there(row.mean).auroc - own for row in model.single_scores}
        assert gaps == {method: pytest.approx(100 * gap, rel=1e-4) for method, gap in singles.items()}
        regret = there(model.regret(there(model.chosen)))
        assert (f"loses {100 * regret:.2f} points" if regret else "is no worse than any of") in figure.title
    figure = there(regrets_figure(MODELS))
    shown = rows(figure.panels[0])
    for model in MODELS:
        for row in (each for each in shown if each.get("model") == model.model):
            assert row["value"] == pytest.approx(
                100 * there(model.regret(model.row(row["method"]))), rel=1e-4, abs=1e-4
            )
    means = [row["value"] for row in shown if "what" in row]
    assert means == sorted(means)
    assert regrets_figure(MODELS[:1]) is None


def test_members_are_drawn_as_they_answered() -> None:
    sets = [gallery("ood_dtd"), gallery("test")]
    figure = there(members_figure(sets, method="OPNP()"))
    for each, panel in zip(sets, figure.panels, strict=True):
        answers = [(member.name, member.p_value, member.share) for item in each.items for member in item.members]
        cells = [(row["member"], row["p"], row["share"] / 100) for row in rows(panel)]
        assert cells == [(name, pytest.approx(p, rel=1e-4), pytest.approx(share)) for name, p, share in answers]
    assert figure.title.startswith("vim has the largest share of the score of the 6 flagged inputs shown, ")
    bare = replace(sets[0], items=tuple(replace(item, members=()) for item in sets[0].items))
    assert members_figure([bare], method="OPNP()") is None


# ------------------------------------------------------------------------------------------------- sweeps


def test_points_of_each_ratio_are_those_of_the_sweep() -> None:
    for model in SWEEP.models:
        figure = there(ratios_figure(model, settings=chosen(w_min=0.3)))
        pairs = [(ratio, metric) for ratio in RATIOS for metric in ("fpr95", "auroc")]
        for (ratio, metric), panel in zip(pairs, figure.panels, strict=True):
            points = model.curve(ratio)
            for side in ("near", "far"):
                if (energy := getattr(model.energy, side)) is None:
                    continue
                shown = rows(panel, line=f"{side} OOD")
                assert [row["x"] for row in shown] == [point.varied[ratio] for point in points]
                assert [row["y"] for row in shown] == near(getattr(getattr(point, side), metric) for point in points)
                assert drawn(panel, "y", line=f"Energy, {side}") == near([getattr(energy, metric)] * 2)
            assert {"x": 0.3 if ratio == "w_min" else 0.0} in rows(panel)


def test_the_reading_that_was_chosen_is_drawn_and_nothing_is_marked_that_is_not_known() -> None:
    figure = there(ratios_figure(SWEPT, settings={"neuron": "aggregate", "scope": "class"}))
    curves = ("w_min-class", "w_max-class", "o_min-aggregate", "o_max-aggregate")
    for panel, curve in zip(figure.panels[1::2], curves, strict=True):
        assert drawn(panel, "y", line="far OOD") == near(there(point.far).auroc for point in SWEPT.curve(curve))
        assert all("line" in row for row in rows(panel))
    [model] = models_of_bench(fusion_record())
    fused = there(model.chosen).settings
    assert all("line" in row for panel in there(ratios_figure(SWEPT, settings=fused)).panels for row in rows(panel))
    assert "dashed" not in there(grid_figure(SWEPT, GRID, settings=fused)).alt


def test_axes_of_ratios_that_span_decades_are_logarithmic_and_hold_zero() -> None:
    axes = [panel.specification["layer"][0]["encoding"]["x"] for panel in there(ratios_figure(SWEPT)).panels[::2]]
    assert [axis.get("scale", {}).get("type") for axis in axes] == [None, "symlog", None, "symlog"]
    assert all(axis["axis"]["values"][0] == 0 for axis in axes[1::2])


def test_the_best_ratio_stands_in_the_title() -> None:
    points = [(point.far.auroc, name) for name in RATIOS for point in SWEPT.curve(name) if point.far is not None]
    assert f"far AUROC {100 * max(points)[0]:.1f} % at rho_{max(points)[1]} = " in there(ratios_figure(SWEPT)).title
    points_alike = tuple(replace(point, far=SWEPT.energy.far) for point in SWEPT.points)
    assert "far AUROC no ratio gains" in there(ratios_figure(replace(SWEPT, points=points_alike))).title
    assert ratios_figure(replace(SWEPT, points=SWEPT.curve("temperature"))) is None


@pytest.mark.parametrize("is_failed", [False, True])
def test_cells_of_the_heat_map_are_those_of_the_sweep(is_failed: bool) -> None:
    for model in SWEEP.models:
        [first, *others] = model.curve(GRID.name)
        points = (*others, replace(first, status="failed", near=None, far=None)) if is_failed else (first, *others)
        figure = there(grid_figure(replace(model, points=points), GRID, settings=chosen(w_min=0.3, o_min=0.1)))
        ran = [point for point in points if point.status == "ok"]
        sides = [side for side in ("near", "far") if getattr(model.energy, side) is not None]
        pairs = [(metric, side) for metric in ("auroc", "fpr95") for side in sides]
        for (metric, side), panel in zip(pairs, figure.panels, strict=True):
            cells = {(float(row["x"]), float(row["y"])): row["value"] for row in rows(panel) if "value" in row}
            assert cells == {
                (point.varied["w_min"], point.varied["o_min"]): pytest.approx(
                    100 * getattr(getattr(point, side), metric), rel=1e-4
                )
                for point in ran
            }
            frames = [(float(row["x"]), float(row["y"])) for row in rows(panel) if "value" not in row]
            pick = max if metric == "auroc" else min
            assert cells[frames[0]] == pick(cells.values())
            assert frames[-1] == (0.3, 0.1)
    assert all(grid_figure(SWEPT, curve) is None for curve in SWEEP.curves if curve != GRID)


@pytest.mark.parametrize(
    "given_settings", [chosen(w_min=0.31), chosen(w_min=0.3, w_max=0.01), {"ratios": "auto"}, None]
)
def test_ratios_off_the_grid_are_not_marked(given_settings: dict[str, object] | None) -> None:
    assert "dashed" not in there(grid_figure(SWEPT, GRID, settings=given_settings)).alt


@pytest.mark.parametrize(
    ("shaping", "words"), [({"name": "scale", "quantile": 0.9}, ", without the shaping"), (None, "")]
)
def test_marks_say_where_the_chosen_shaping_is_missing(shaping: dict[str, object] | None, words: str) -> None:
    given_settings = chosen(w_min=0.0) | {"shaping": shaping}
    grid, ratios = (
        there(make(SWEPT, *more, settings=given_settings))
        for make, more in ((grid_figure, [GRID]), (ratios_figure, []))
    )
    assert f"dashed: ratios chosen by OPNP{words}. Best" in grid.alt
    title = ratios.panels[0].specification["layer"][-1]["encoding"]["x"]["title"]
    assert title.endswith(f"lowest; chosen 0{words}")


# ------------------------------------------------------------------------------------------------- scores


@given(scores_with_ties, scores_with_ties)
def test_curves_are_those_of_the_core(inside: Scores, outside: Scores) -> None:
    tensors = torch.from_numpy(inside), torch.from_numpy(outside)
    curve = Curve.of(inside, outside)
    assert auc(*curve.roc.T) == pytest.approx(auroc(*tensors), abs=1e-12)
    area = (np.diff(curve.precision[:, 0]) * curve.precision[1:, 1]).sum()
    assert area == pytest.approx(aupr(*tensors, positive="id"), abs=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0, 3), st.sampled_from([1, 2, 40]))
def test_fewer_points_move_no_area_visibly(seed: int, shift: float, digits: int) -> None:
    draw = np.random.default_rng(seed)
    inside, outside = draw.normal(0, 1, 4000).round(digits), draw.normal(shift, 1.5, 3000).round(digits)
    curve = Curve.of(inside, outside)
    assert max(map(len, (curve.roc, curve.precision))) <= 256
    assert (*curve.roc[0], *curve.roc[-1]) == (0, 0, 1, 1)
    assert auc(*curve.roc.T) == pytest.approx(curve.auroc, abs=2e-3)
    area = (np.diff(curve.precision[:, 0]) * curve.precision[1:, 1]).sum()
    assert area == pytest.approx(curve.aupr, abs=8e-3)


@given(scores_with_ties, scores_with_ties, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_the_threshold_is_that_of_the_core(inside: Scores, outside: Scores, keep: float) -> None:
    threshold = keeping_threshold(inside, keep)
    assert np.mean(inside <= threshold) >= keep
    assert np.mean(inside < threshold) < keep
    expected = fpr_at_tpr(torch.from_numpy(inside), torch.from_numpy(outside), tpr=keep)
    assert np.mean(outside <= threshold) == expected


@settings(max_examples=25)
@given(scores_with_ties, scores_with_ties, st.integers(1, 20))
def test_histograms_hold_every_sample_and_start_at_the_threshold(inside: Scores, outside: Scores, bins: int) -> None:
    [panel] = scores_figure({"a": {"test": inside, "ood_far": outside}}, {"far": "far"}, bins=bins).panels
    for name, scores in (("ID", inside), ("OOD", outside)):
        shares = [row["y"] for row in rows(panel, set=name)]
        assert sum(shares) == pytest.approx(100, rel=1e-3)
        counts = np.array(shares) * len(scores) / 100
        assert counts == pytest.approx(counts.round(), abs=0.01)
    threshold, kept = (each["value"] for each in panel.specification["params"])
    assert threshold == keeping_threshold(inside, 0.95)
    assert kept == pytest.approx(100 * np.mean(outside <= threshold), rel=1e-4)


def test_a_few_far_out_scores_do_not_squash_the_histogram() -> None:
    scores = scores_by_set(samples=10_000)
    scores["test"][0] = 1e9
    [panel, _] = scores_figure({"a": scores}, SIDES).panels
    assert rows(panel, set="ID")[-1]["x2"] < 100


def test_rows_are_near_before_far_and_columns_are_methods_which_follow_the_explorer() -> None:
    scores = {"Energy, rest of test": scores_by_set(0), "OPNP()": scores_by_set(1)}
    figure = scores_figure(scores, SIDES, keep=0.9)
    order = [(method, name) for name in ("near", "far") for method in scores]
    assert [(panel.follows[0].method, panel.follows[1].set) for panel in figure.panels] == order
    kept = {
        method: [np.mean(by_set[f"ood_{name}"] <= keeping_threshold(by_set["test"], 0.9)) for name in SIDES]
        for method, by_set in scores.items()
    }
    means = [100 * np.mean(kept[method]) for method in scores]
    assert f"OPNP() {means[1]:.1f} % and Energy {means[0]:.1f} %" in figure.title
    curves = curves_figure(scores, SIDES)
    for panel, name in zip(curves.panels[::2], ("near", "far"), strict=True):
        for method, label in zip(scores, ("Energy", "OPNP()"), strict=True):
            curve = Curve.of(scores[method]["test"], scores[method][f"ood_{name}"])
            points = rows(panel, method=label)
            assert [(row["x"], row["y"]) for row in points] == [
                pytest.approx(point, rel=1e-4) for point in (100 * np.unique(curve.roc, axis=0)).tolist()
            ]
        assert {(each.quantity, each.set) for each in panel.follows} == {("kept_ood", name), ("kept_id", "")}


@pytest.mark.parametrize("name", ["it's", 'a "b"', "\\", "\N{LANGUAGE TAG}", "</script>", "${x}"])
def test_names_in_expressions_stay_names(name: str) -> None:
    by_set = scores_by_set()
    figure = scores_figure({"a": {"test": by_set["test"], f"ood_{name}": by_set["ood_far"]}}, {name: "far"})
    [panel] = figure.panels
    expression = panel.specification["title"]["text"]["expr"]
    assert json.loads(expression.partition(" + ': '")[0]) == f"{name} (far)"
    assert f"{escape(name, quote=False)} (far): " in figure_bytes(figure, "svg").decode()


def test_a_set_that_a_method_lacks_is_left_out() -> None:
    first, second = scores_by_set(0), scores_by_set(1)
    del second["ood_near"]
    assert {panel.follows[1].set for panel in scores_figure({"a": first, "b": second}, SIDES).panels} == {"far"}
    del second["ood_far"]
    with pytest.raises(EmptyDataError, match="no OOD set that every method has scores for"):
        scores_figure({"a": first, "b": second}, SIDES)


@pytest.mark.parametrize("keep", [0.0, 1.0, 95.0])
def test_keep_must_be_a_share_and_scores_must_be_there(keep: float) -> None:
    with pytest.raises(OptionError, match=r"`keep` must lie between 0 and 1, got .* Give 0\.95 for 95 %"):
        keeping_threshold(np.array([1.0]), keep)
    with pytest.raises(EmptyDataError, match="no ID scores"):
        keeping_threshold(np.array([]), 0.95)


# ------------------------------------------------------------------------------------------------- files


def test_files_bear_the_names_of_the_figures(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "results")
    (folder / "pictures.json").unlink()
    paths = write_figures(folder, tmp_path / "a", formats=("svg",))
    names = ["figure-5-scores-demo.svg", "curves-demo.svg", "ranking-demo.svg", "regret-demo.svg"]
    assert [path.name for path in paths] == names
    assert all(path.parent == tmp_path / "a" and path.stat().st_size < 400_000 for path in paths)


@pytest.mark.parametrize("ending", FORMATS)
def test_equal_figures_are_equal_files_but_for_pdf(figures: tuple[Figure, ...], ending: str) -> None:
    [ranking, *_] = [figure for figure in figures if figure.stem == "ranking"]
    content = figure_bytes(ranking, ending)
    assert content == figure_bytes(ranking, ending) or ending == "pdf"  # whose fonts vl-convert puts in any order
    assert content.startswith({"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[ending])
    if ending == "png":
        assert 1200 < int.from_bytes(content[16:20]) < 1600  # about 200 dots an inch at 6.75 inches


def test_a_model_with_slashes_is_a_file_in_the_folder(tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "results")
    path = folder / "results.json"
    (folder / "sweep.json").unlink()
    (folder / "scores.parquet").unlink()
    text = path.read_text(encoding="utf-8")
    renamed = text.replace('"densenet_cifar100"', '"hf/a b"').replace('"densenet_cifar10"', '"hf_a_b"')
    path.write_text(renamed, encoding="utf-8")
    names = [figure.name for figure in named_figures(read_results(folder))]
    assert {"regrets", "ranking-hf_a_b", "ranking-hf_a_b-2"} < set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("formats", [("gif",), (), "svg"])
def test_unknown_formats_are_refused(tmp_path: Path, formats: Any) -> None:
    with pytest.raises(OptionError, match="`formats` must be some of 'svg', 'png', 'pdf', got"):
        write_figures(tmp_path, tmp_path / "out", formats=formats)


def test_a_file_is_no_folder_for_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("")
    folder = demo_folder(tmp_path / "results")
    with pytest.raises(DataFileError, match="is a file: name a folder for the figures"):
        write_figures(folder, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=r"need vl-convert-python.*pip install 'opnp\[report\]'"):
        write_figures(folder, tmp_path / "other")

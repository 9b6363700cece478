import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import auc

from opnp.core import aupr, auroc, fpr_at_tpr
from opnp.errors import EmptyDataError, OptionError
from opnp.report.series import curve_series, score_series
from opnp.report.score_series import (
    area_under_roc,
    keeping_threshold,
    precision_points,
    roc_points,
    thinned,
)
from tests.unit.report.report_world import scores_by_set

Scores = NDArray[np.float64]
# Few levels, so that ties are common.
scores_with_ties = arrays(np.float64, st.integers(1, 60), elements=st.integers(-4, 4).map(float))


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
    assert len(curve.kept_ood) <= 512
    assert len(curve.recall) <= 512
    assert auc(curve.kept_ood, curve.kept_id) == pytest.approx(auroc(*tensors), abs=1e-3)
    area = (np.diff(curve.recall) * np.array(curve.precision)[1:]).sum()
    assert area == pytest.approx(aupr(*tensors), abs=4e-3)
    assert curve.auroc == auroc(*tensors)
    assert curve.aupr == pytest.approx(aupr(*tensors), abs=1e-12)


def test_thinned_points_are_points_of_the_curve_and_keep_its_ends() -> None:
    draw = np.random.default_rng(3)
    whole = roc_points(draw.normal(0, 1, 5000), draw.normal(1, 1, 5000))
    part = thinned(whole, 100)
    places = {*zip(whole.x.tolist(), whole.y.tolist(), strict=True)}
    assert {*zip(part.x.tolist(), part.y.tolist(), strict=True)} <= places
    assert len(part.x) <= 100
    assert (part.x[0], part.y[0], part.x[-1], part.y[-1]) == (0.0, 0.0, 1.0, 1.0)


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
    [panel, _] = score_series("m", {"a": scores}, {"far": "far", "near": "near"}).panels
    assert panel.edges[-1] < 100
    assert sum(panel.id_counts) == 10_000


def test_rows_are_near_before_far_and_columns_are_methods() -> None:
    scores = {"Energy, rest of test": scores_by_set(0), "OPNP()": scores_by_set(1)}
    series = score_series("m", scores, {"far": "far", "near": "near"})
    assert series.sets == ("near", "far")
    assert [(panel.set, panel.method) for panel in series.panels] == [
        (name, method) for name in series.sets for method in scores
    ]
    for name in series.sets:
        for method, by_set in scores.items():
            panel = series.panel(name, method)
            threshold = keeping_threshold(by_set["test"], 0.95)
            assert panel.threshold == threshold
            assert panel.kept_ood == np.mean(by_set[f"ood_{name}"] <= threshold)
    means = [np.mean([panel.kept_ood for panel in series.panels if panel.method == method]) for method in scores]
    assert f"OPNP() {100 * means[1]:.1f} % and Energy {100 * means[0]:.1f} %" in series.title
    assert [panel.set for panel in curve_series("m", scores, {"far": "far", "near": "near"}).panels] == ["near", "far"]


def test_a_set_that_a_method_lacks_is_left_out() -> None:
    first, second = scores_by_set(0), scores_by_set(1)
    del second["ood_near"]
    series = score_series("m", {"a": first, "b": second}, {"far": "far", "near": "near"})
    assert series.sets == ("far",)
    del second["ood_far"]
    with pytest.raises(EmptyDataError, match="no OOD set that every method has scores for"):
        score_series("m", {"a": first, "b": second}, {"far": "far", "near": "near"})


@pytest.mark.parametrize("keep", [0.0, 1.0, 95.0])
def test_keep_must_be_a_share(keep: float) -> None:
    with pytest.raises(OptionError, match=r"`keep` must lie between 0 and 1, got .* Give 0\.95 for 95 %"):
        keeping_threshold(np.array([1.0]), keep)


def test_scores_must_be_there() -> None:
    with pytest.raises(EmptyDataError, match="no ID scores"):
        keeping_threshold(np.array([]), 0.95)
    with pytest.raises(EmptyDataError, match="at least one ID score and one OOD score"):
        roc_points(np.array([1.0]), np.array([]))


def test_a_hundred_thousand_scores_a_set_take_a_moment() -> None:
    scores = {name: scores_by_set(seed, samples=100_000) for seed, name in enumerate(("a", "b"))}
    start = time.perf_counter()
    score_series("m", scores, {"far": "far", "near": "near"})
    curve_series("m", scores, {"far": "far", "near": "near"})
    assert time.perf_counter() - start < 3

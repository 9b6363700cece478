"""Metrics: monotone maps, swapped classes, ranges."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import PositiveClass, aupr, auroc, expected_calibration_error, fpr_at_tpr, reliability

checked = settings(derandomize=True, deadline=None, database=None, max_examples=100)

SCORES = st.lists(st.integers(-20, 20), min_size=1, max_size=40).map(lambda values: torch.tensor(values).double())
POSITIVE: st.SearchStrategy[PositiveClass] = st.sampled_from(["id", "ood"])
TPRS = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)
MONOTONE: list[Callable[[Tensor], Tensor]] = [
    lambda scores: 3 * scores - 7,
    lambda scores: scores**3,
    lambda scores: torch.exp(scores / 4),
    lambda scores: scores.float(),
    lambda scores: scores.long(),
    lambda scores: torch.where(scores == 20, torch.inf, torch.where(scores == -20, -torch.inf, scores)),
    lambda scores: torch.where(scores == 0, -0.0, scores),
]


@checked
@given(inside=SCORES, outside=SCORES, positive=POSITIVE, tpr=TPRS)
def test_monotone_maps_leave_rank_metrics_alone(
    inside: Tensor, outside: Tensor, positive: PositiveClass, tpr: float
) -> None:
    area, precision = auroc(inside, outside), aupr(inside, outside, positive=positive)
    share = fpr_at_tpr(inside, outside, tpr=tpr, positive=positive)
    for monotone in MONOTONE:
        low, high = monotone(inside), monotone(outside)
        assert auroc(low, high) == area
        assert aupr(low, high, positive=positive) == precision
        assert fpr_at_tpr(low, high, tpr=tpr, positive=positive) == share


@checked
@given(inside=SCORES, outside=SCORES, tpr=TPRS)
def test_swapped_classes_mirror_every_metric(inside: Tensor, outside: Tensor, tpr: float) -> None:
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1, abs=1e-15)
    assert auroc(inside, outside) == auroc(-outside, -inside)
    assert aupr(inside, outside, positive="id") == aupr(-outside, -inside, positive="ood")
    assert fpr_at_tpr(inside, outside, tpr=tpr) == fpr_at_tpr(-outside, -inside, tpr=tpr, positive="ood")


@checked
@given(inside=SCORES, outside=SCORES, tprs=st.tuples(TPRS, TPRS), positive=POSITIVE, choose=st.data())
def test_order_does_not_matter_and_fpr_grows_with_tpr(
    inside: Tensor, outside: Tensor, tprs: tuple[float, float], positive: PositiveClass, choose: st.DataObject
) -> None:
    low, high = sorted(tprs)
    shuffled = inside[torch.tensor(choose.draw(st.permutations(range(len(inside)))))]
    assert auroc(shuffled, outside) == auroc(inside, outside)
    assert aupr(shuffled, outside, positive=positive) == aupr(inside, outside, positive=positive)
    smaller = fpr_at_tpr(shuffled, outside, tpr=low, positive=positive)
    larger = fpr_at_tpr(inside, outside, tpr=high, positive=positive)
    assert 0 <= smaller <= larger <= 1


@checked
@given(level=st.integers(-5, 5), n=st.integers(1, 30), m=st.integers(1, 30), tpr=TPRS)
def test_a_constant_score_knows_nothing(level: int, n: int, m: int, tpr: float) -> None:
    inside, outside = torch.full((n,), float(level)), torch.full((m,), float(level))
    assert auroc(inside, outside) == 0.5
    assert aupr(inside, outside, positive="id") == pytest.approx(n / (n + m), abs=1e-15)
    assert aupr(inside, outside, positive="ood") == pytest.approx(m / (n + m), abs=1e-15)
    assert fpr_at_tpr(inside, outside, tpr=tpr) == fpr_at_tpr(inside, outside, tpr=tpr, positive="ood") == 1.0


@checked
@given(samples=st.integers(1, 60), classes=st.integers(1, 6), bins=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_reliability_is_a_partition_of_the_samples(samples: int, classes: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64) * 4
    probabilities, labels = logits.softmax(1), torch.randint(0, classes, (samples,), generator=generator)
    table = reliability(probabilities, labels, bins=bins)

    assert int(table.count.sum()) == samples
    assert float(table.confidence @ table.count.double()) == pytest.approx(float(probabilities.amax(1).sum()))
    assert float(table.accuracy @ table.count.double()) == pytest.approx(int((logits.argmax(1) == labels).sum()))
    assert table.confidence[table.count == 0].tolist() == [0.0] * int((table.count == 0).sum())
    edges = torch.arange(bins + 1).double() / bins
    is_filled = table.count > 0
    assert bool((table.confidence[is_filled] <= edges[1:][is_filled] + 1e-12).all())
    assert bool((table.confidence[is_filled] >= edges[:-1][is_filled] - 1e-12).all())

    error = expected_calibration_error(probabilities, labels, bins=bins)
    overall = abs(float(probabilities.amax(1).mean()) - float((logits.argmax(1) == labels).double().mean()))
    assert overall - 1e-12 <= error <= 1

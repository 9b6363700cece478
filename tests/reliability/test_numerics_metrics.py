"""Metrics and p-values of extreme scores against counts over fractions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import (
    PositiveClass,
    aupr,
    auroc,
    conformal_p_value,
    expected_calibration_error,
    fpr_at_tpr,
    is_flagged,
    keep_threshold,
)
from tests.reliability.numerics_world import DTYPES, extreme_rows
from tests.tried import Tried


def as_positive(inside: list[float], outside: list[float]) -> list[tuple[PositiveClass, list[float], list[float]]]:
    """Return each class as the positive one, with scores that are larger where they speak for it."""
    turned = [[-value for value in part] for part in (inside, outside)]
    return [("id", turned[0], turned[1]), ("ood", outside, inside)]


def exact_aupr(hits: list[float], misses: list[float]) -> Fraction:
    """Return sum_k (R_k - R_(k-1)) P_k over the distinct thresholds, larger = more positive."""
    total, before = Fraction(0), Fraction(0)
    for threshold in sorted({*hits, *misses}, reverse=True):
        passed_hits = sum(value >= threshold for value in hits)
        passed = passed_hits + sum(value >= threshold for value in misses)
        recall = Fraction(passed_hits, len(hits))
        total, before = total + (recall - before) * Fraction(passed_hits, passed), recall
    return total


def exact_fpr(hits: list[float], misses: list[float], tpr: Fraction) -> Fraction:
    """Return the share of misses that pass at the highest threshold that the share `tpr` of the hits pass."""
    threshold = max(cut for cut in hits if Fraction(sum(value >= cut for value in hits), len(hits)) >= tpr)
    return Fraction(sum(value >= threshold for value in misses), len(misses))


def exact_calibration_error(rows: list[list[float]], labels: list[int], bins: int) -> Fraction:
    """Return the mean gap between confidence and accuracy over bins ((b - 1) / bins, b / bins]."""
    members: dict[int, list[tuple[Fraction, int]]] = {}
    for row, label in zip(rows, labels, strict=True):
        confidence = Fraction(max(row))
        place = max(1, math.ceil(float(confidence) * bins))
        members.setdefault(place, []).append((confidence, int(row.index(max(row)) == label)))
    gaps = [abs(sum((c - right for c, right in found), Fraction(0))) for found in members.values()]
    return sum(gaps, Fraction(0)) / len(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [15, pytest.param(400, marks=pytest.mark.long)])
def test_metrics_and_p_values_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    tried("numerics", "sets of extreme scores, each measured in nine ways", trials)
    highest = 4 if dtype == torch.float16 else 38

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=trials, suppress_health_check=list(HealthCheck)
    )
    @given(
        scores=extreme_rows(rows=2, width=12, highest=highest),
        calibration=extreme_rows(rows=1, width=19, highest=highest),
        is_endless=st.booleans(),
    )
    def check(scores: Tensor, calibration: Tensor, is_endless: bool) -> None:
        scores = scores.to(dtype)
        if is_endless:
            scores[0, 0], scores[1, 0], scores[1, 1] = -math.inf, math.inf, math.inf
        inside, outside = scores.tolist()
        pairs = [Fraction(b > a) + Fraction(b == a, 2) for a in inside for b in outside]
        assert auroc(*scores) == pytest.approx(float(sum(pairs) / len(pairs)), rel=1e-15)
        for positive, hits, misses in as_positive(inside, outside):
            found = aupr(*scores, positive=positive)
            assert found == pytest.approx(float(exact_aupr(hits, misses)), rel=1e-14)
            for tpr in ("0.95", "0.5"):
                expected = float(exact_fpr(hits, misses, Fraction(tpr)))
                assert fpr_at_tpr(*scores, tpr=float(tpr), positive=positive) == expected
        held = calibration[0].to(dtype)
        ranks = [1 + sum(other >= value for other in held.tolist()) for value in inside]
        assert conformal_p_value(scores[0], held).tolist() == [rank / 20 for rank in ranks]
        assert is_flagged(scores[0], held, keep=0.95).tolist() == [rank == 1 for rank in ranks]
        assert keep_threshold(held, keep=0.95) == max(held.tolist())

    check()


@pytest.mark.reliability
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 30.0, 1e4])
def test_calibration_errors_are_exact(tried: Tried, size: float, dtype: torch.dtype) -> None:
    tried("numerics", "sets of probabilities whose calibration error is compared with the exact one")
    generator = torch.Generator().manual_seed(int(size))
    probabilities = torch.softmax(size * torch.randn(40, 5, generator=generator), 1).to(dtype)
    labels = torch.randint(0, 5, (40,), generator=generator)
    for bins in (1, 10, 15):
        expected = float(exact_calibration_error(probabilities.tolist(), labels.tolist(), bins))
        found = expected_calibration_error(probabilities, labels, bins=bins)
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-15)

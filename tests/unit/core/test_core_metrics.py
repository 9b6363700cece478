"""Metrics: large sets, dtypes and errors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import (
    DetectionFigures,
    accuracy,
    aupr,
    auroc,
    detection_metrics,
    expected_calibration_error,
    fpr_at_tpr,
    reliability,
)
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError

RANK_METRICS: list[Callable[..., object]] = [auroc, aupr, fpr_at_tpr, lambda low, high: detection_metrics(low, [high])]
PROBABILITIES = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
LABELS = torch.tensor([0, 1])


def test_perfect_and_reversed_detectors() -> None:
    low, high = torch.arange(50.0), torch.arange(100.0, 170.0)
    right, wrong = detection_metrics(low, [high]) + detection_metrics(high, [low])
    assert right == DetectionFigures(0.0, 0.0, 1.0, 1.0, 1.0)
    assert (wrong.fpr95, wrong.fpr95_ood_positive, wrong.auroc) == (1.0, 1.0, 0.0)
    assert detection_metrics(low, []) == []


def test_a_hundred_thousand_by_a_hundred_thousand_pairs_do_not_overflow() -> None:
    inside, outside = torch.zeros(100_000), torch.zeros(100_000)
    assert auroc(inside, outside) == aupr(inside, outside) == 0.5
    outside[:25_000] = 1
    assert auroc(inside, outside) == 0.625
    assert fpr_at_tpr(inside, outside) == 0.75


@pytest.mark.parametrize("tpr", [0.95, 0.9, 0.7, 0.35, 0.949])
def test_tpr_is_the_decimal_it_is_written_as(tpr: float) -> None:
    """1000 distinct scores on both sides: exactly 1000 tpr of them pass, whatever binary fraction stands for `tpr`."""
    scores = torch.arange(1000.0)
    assert fpr_at_tpr(scores, scores, tpr=tpr) == tpr
    assert fpr_at_tpr(scores, scores, tpr=tpr, positive="ood") == tpr


@pytest.mark.parametrize("metric", RANK_METRICS)
@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.ones(0), EmptyDataError, "is empty: at least one score is needed"),
        (torch.ones(3, 1), ShapeError, r"must have shape \(batch,\), got \(3, 1\)"),
        (torch.tensor([1.0, math.nan]), NonFiniteError, "holds 1 NaN of 2 scores"),
        ([1.0], InputTypeError, "got list"),
    ],
)
def test_both_sets_of_scores_are_checked(metric: Any, scores: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"`id_scores` .*{message}"):
        metric(scores, torch.ones(2))
    with pytest.raises(error, match=f"`ood_scores` .*{message}"):
        metric(torch.ones(2), scores)


def test_options_of_the_rank_metrics_are_checked() -> None:
    scores, unknown = torch.ones(3), "in"
    for metric in (aupr, fpr_at_tpr):
        with pytest.raises(OptionError, match=r'`positive` must be "id" or "ood", got \'in\''):
            metric(scores, scores, positive=unknown)  # type: ignore[arg-type]  # what is refused
    for tpr in (0.0, 1.0, 95):
        with pytest.raises(OptionError, match=r"`tpr` must be a fraction in \(0, 1\)"):
            fpr_at_tpr(scores, scores, tpr=tpr)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32, torch.int64])
def test_accuracy_takes_any_floating_logits_and_integer_labels(dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    assert accuracy(logits, torch.tensor([1, 0, 0]).to(label_dtype)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", [accuracy, reliability, expected_calibration_error])
@pytest.mark.parametrize(
    ("scores", "labels", "error", "message"),
    [
        (PROBABILITIES, torch.tensor([[0, 1]]), ShapeError, r"`labels` must have shape \(2,\), got \(1, 2\)"),
        (PROBABILITIES, torch.tensor([0.0, 1.0]), InputTypeError, r"integer class indices, got torch\.float32"),
        (PROBABILITIES, torch.tensor([True, False]), InputTypeError, r"integer class indices, got torch\.bool"),
        (PROBABILITIES, LABELS.to(torch.complex64), InputTypeError, r"integer class indices, got torch\.complex64"),
        (PROBABILITIES, torch.tensor([0, 2]), OptionError, r"`labels` must lie in 0 to 1 for 2 classes, got 0 to 2"),
        (PROBABILITIES, torch.tensor([-1, 0]), OptionError, r"`labels` must lie in 0 to 1 .* got -1 to 0"),
        (PROBABILITIES[:0], LABELS[:0], EmptyDataError, "There are no samples"),
        (
            PROBABILITIES[0],
            LABELS,
            ShapeError,
            r"^`(logits|probabilities)` must have shape \(batch, classes\)",
        ),
    ],
)
def test_predictions_and_labels_are_checked(
    metric: Any, scores: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(scores, labels)


@pytest.mark.parametrize("first", [[3.0, -1.0], [-3.0, -1.0], [math.nan, 0.5], [0.9, -0.5], [1.0001, 0.0]])
def test_logits_are_not_taken_for_probabilities(first: list[float]) -> None:
    with pytest.raises(OptionError, match=r"`probabilities` must lie in \[0, 1\]: take `torch\.softmax\(logits, 1\)`"):
        expected_calibration_error(torch.tensor([first, [0.5, 0.5]]), LABELS)


@pytest.mark.parametrize("above", [1e-7, 1e-6])
def test_a_softmax_that_rounds_above_one_is_a_probability(above: float) -> None:
    table = reliability(torch.tensor([[1 + above, 0.0], [0.0, 1.0]], dtype=torch.float64), LABELS, bins=5)
    assert table.count.tolist() == [0, 0, 0, 0, 2]


def test_bins_are_15_unless_told_checked_and_closed_above() -> None:
    assert len(reliability(PROBABILITIES, LABELS).count) == 15
    with pytest.raises(OptionError, match="`bins` must be at least 1, got 0"):
        reliability(PROBABILITIES, LABELS, bins=0)
    halves = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 0.0]], dtype=torch.float64)
    table = reliability(halves, torch.tensor([1, 1, 0]), bins=4)
    assert table.count.tolist() == [1, 1, 1, 0]
    assert table.confidence.tolist() == [0.0, 0.5, 0.75, 0.0]
    assert table.accuracy.tolist() == [1.0, 0.0, 1.0, 0.0]

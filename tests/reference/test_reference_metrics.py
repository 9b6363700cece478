"""Metrics against their definitions, pair by pair and threshold by threshold, in fractions where possible."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from opnp.core import aupr, auroc, detection_metrics, expected_calibration_error, fpr_at_tpr, reliability


def loop_auroc(inside: list[float], outside: list[float]) -> float:
    twice = sum(2 * (high > low) + (high == low) for high in outside for low in inside)
    return float(Fraction(twice, 2 * len(inside) * len(outside)))


def loop_fpr_id_positive(inside: list[float], outside: list[float], tpr: str) -> float:
    """The smallest ID score that at least `tpr` of ID do not exceed; the share of OOD that passes there."""
    for threshold in sorted(inside):
        if Fraction(sum(score <= threshold for score in inside), len(inside)) >= Fraction(tpr):
            return sum(score <= threshold for score in outside) / len(outside)
    raise AssertionError


def loop_fpr_ood_positive(inside: list[float], outside: list[float], tpr: str) -> float:
    """The largest OOD score that at least `tpr` of OOD reach; the share of ID flagged there."""
    for threshold in sorted(outside, reverse=True):
        if Fraction(sum(score >= threshold for score in outside), len(outside)) >= Fraction(tpr):
            return sum(score >= threshold for score in inside) / len(inside)
    raise AssertionError


def loop_average_precision(positives: list[float], negatives: list[float]) -> float:
    """Positives have the larger scores. All samples with one score pass together."""
    total, recall = Fraction(0), Fraction(0)
    for threshold in sorted({*positives, *negatives}, reverse=True):
        hits = sum(score >= threshold for score in positives)
        passed = hits + sum(score >= threshold for score in negatives)
        total += (Fraction(hits, len(positives)) - recall) * Fraction(hits, passed)
        recall = Fraction(hits, len(positives))
    return float(total)


def loop_ece(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[float, list[int]]:
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        index = next(b for b in range(bins) if Fraction(b, bins) < Fraction(confidence) <= Fraction(b + 1, bins))
        members[index].append((confidence, row.index(confidence) == label))
    gaps = [abs(sum(c for c, _ in group) - sum(right for _, right in group)) for group in members]
    return sum(gaps) / len(labels), [len(group) for group in members]


def two_sets(seed: int, inside: int = 60, outside: int = 41) -> tuple[Tensor, Tensor]:
    """Integers from a small range: many ties within and between the sets."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 12, (inside,), generator=generator).float(),
        torch.randint(4, 16, (outside,), generator=generator).float(),
    )


@pytest.mark.parametrize("seed", range(5))
def test_figures_count_pairs_and_samples_at_distinct_thresholds(seed: int) -> None:
    inside, outside = two_sets(seed)
    lists = inside.tolist(), outside.tolist()
    low, high = [-score for score in lists[0]], [-score for score in lists[1]]
    of_id, of_ood = loop_average_precision(low, high), loop_average_precision(lists[1], lists[0])
    for tpr in ("0.95", "0.9", "0.35", "0.005", "0.999"):
        assert fpr_at_tpr(inside, outside, tpr=float(tpr)) == loop_fpr_id_positive(*lists, tpr)
        assert fpr_at_tpr(inside, outside, tpr=float(tpr), positive="ood") == loop_fpr_ood_positive(*lists, tpr)
    assert auroc(inside, outside) == loop_auroc(*lists)
    assert aupr(inside, outside, positive="id") == pytest.approx(of_id, abs=1e-14)
    assert aupr(inside, outside, positive="ood") == pytest.approx(of_ood, abs=1e-14)
    [figures] = detection_metrics(inside, [outside])
    assert (figures.fpr95, figures.fpr95_ood_positive) == (
        fpr_at_tpr(inside, outside),
        fpr_at_tpr(inside, outside, positive="ood"),
    )
    assert figures.auroc == auroc(inside, outside)
    assert figures.aupr_id_positive == aupr(inside, outside, positive="id")
    assert figures.aupr_ood_positive == aupr(inside, outside, positive="ood")


def test_the_two_conventions_are_two_numbers() -> None:
    """95 of 100 ID scores reach up to 94, where 10 OOD scores pass; catching 95 OOD scores takes a threshold of -1."""
    inside, outside = torch.arange(100.0), torch.cat([torch.full((90,), 200.0), torch.full((10,), -1.0)])
    assert fpr_at_tpr(inside, outside) == fpr_at_tpr(inside, outside, positive="id") == 0.1
    assert fpr_at_tpr(inside, outside, positive="ood") == 1.0


@pytest.mark.parametrize("bins", [1, 4, 7, 8, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_bin_by_bin(seed: int, bins: int) -> None:
    """Probabilities are multiples of 1/64, so that for 4 and 8 bins many lie exactly on an edge."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 65, (200,), generator=generator).double() / 64
    probabilities = torch.stack([first, 1 - first], dim=1)
    labels = torch.randint(0, 2, (200,), generator=generator)
    expected, counts = loop_ece(probabilities, labels, bins)
    assert expected_calibration_error(probabilities, labels, bins=bins) == pytest.approx(expected, abs=1e-14)
    assert reliability(probabilities, labels, bins=bins).count.tolist() == counts

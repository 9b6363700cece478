"""p-values are super-uniform, checked by counting: each of n + 1 exchangeable scores is as likely to be the new one.

The scores are given; which of them is tested is all that is left to chance, and every choice is tried. So the shares
are exact, and hold for scores from any source.
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import minimum_samples
from opnp.monitor import DriftMonitor
from tests.reliability.guarantees_world import KINDS, compositions, ordering_detector
from tests.tried import Tried

KEEPS = (0.5, 0.75, 0.9, 0.95)


def ranks_and_flags(groups: Sequence[int], *, keep: float, kind: str) -> tuple[list[int], int]:
    """Return the rank (n + 1) p of each choice of the tested sample, ascending, and how many choices are flagged.

    Args:
        groups: How many of n + 1 scores are equal, group by group; the first group has the largest scores.
        keep: Share of ID to keep.
        kind: Of the detector.

    """
    features = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups)).float()
    detector = ordering_detector(kind)
    ranks, flagged, start = list[int](), 0, 0
    for size in groups:
        rest = torch.cat([features[:start], features[start + 1 :]])
        detector.calibrate_features(rest[:, None], keep=keep)
        verdict = detector.verdict_features(features[start : start + 1, None])
        rank = round(float(verdict.p_value) * len(features))
        assert float(verdict.p_value) == rank / len(features)
        ranks += [rank] * size
        flagged += size * bool(verdict.is_ood)
        start += size
    return sorted(ranks), flagged


def require_super_uniform(ranks: Sequence[int]) -> None:
    """Fail unless P(p <= a) <= a for every a; between two of the values that p can take, nothing changes."""
    for rank in range(1, len(ranks) + 1):
        assert sum(other <= rank for other in ranks) <= rank


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [7, pytest.param(10, marks=pytest.mark.long)])
def test_every_pattern_of_ties_of_few_scores_gives_super_uniform_p_values(tried: Tried, most: int, kind: str) -> None:
    patterns = [groups for total in range(2, most + 1) for groups in compositions(total)]
    tried("guarantees", "patterns of ties of up to 10 scores, with every choice of the tested one", len(patterns))
    for number, groups in enumerate(patterns):
        total = sum(groups)
        keep = [keep for keep in KEEPS if minimum_samples(keep=keep) < total][number % 2 :][:1] or [0.5]
        ranks, flagged = ranks_and_flags(groups, keep=keep[0], kind=kind)
        require_super_uniform(ranks)
        assert Fraction(flagged, total) <= 1 - Fraction(str(keep[0]))
        # Exactly: the rank of a score is the number of scores that are at least as large, itself included.
        assert ranks == sorted(rank for at, size in enumerate(groups) for rank in [sum(groups[: at + 1])] * size)
        if len(groups) == total:
            assert ranks == list(range(1, total + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draws", [20, pytest.param(200, marks=pytest.mark.long)])
def test_with_20_calibration_samples_and_ties_p_values_are_super_uniform(tried: Tried, draws: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = [21, 8, 5, 3, 2]
    tried(
        "guarantees", "draws of 21 scores from few values, with every choice of the tested one", draws * len(kinds) + 2
    )
    drawn = [torch.randint(0, values, (21,), generator=generator) for _ in range(draws) for values in kinds]
    for scores in [*drawn, torch.zeros(21, dtype=torch.int64), torch.arange(21)]:
        groups = torch.unique(scores, return_counts=True)[1].tolist()
        ranks, flagged = ranks_and_flags(groups, keep=0.95, kind=kind)
        require_super_uniform(ranks)
        assert flagged <= 1  # of 21, at a share of 0.05
        assert flagged == (groups[0] == 1)
    assert ranks_and_flags([21], keep=0.95, kind=kind) == ([21] * 21, 0)


def test_the_check_rejects_p_values_that_are_too_small(tried: Tried) -> None:
    """Without the 1 that is added for the sample itself, or with equal scores not counted, the guarantee is gone."""
    tried("guarantees", "rules for p-values that are a little too small, which the check rejects", 2)
    for ranks in ([0, 1, 2, 3], [1, 1, 3, 4]):
        with pytest.raises(AssertionError):
            require_super_uniform(ranks)


def online_parts(order: Sequence[int], samples: int, patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return, for each sample of a stream, how many before it are greater and how many are equal, by the monitor."""
    seen: list[tuple[int, int]] = []

    def recording(greater: Tensor, equal: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.extend(zip(greater.tolist(), equal.tolist(), strict=True))
        return torch.full(greater.shape, 0.5, dtype=torch.float64)

    patch.setattr("opnp.monitor.stream.online_p_value", recording)
    scores = torch.tensor(order, dtype=torch.float64)
    monitor = DriftMonitor(scores[:samples])
    for piece in scores[samples:].split(2):
        monitor.update(piece)
    return seen


@pytest.mark.parametrize(
    ("samples", "length"), [(1, 3), (2, 3), (1, 4), pytest.param(3, 3, marks=pytest.mark.long), (4, 1)]
)
def test_the_monitors_p_values_are_independent_and_uniform_over_all_orders(
    tried: Tried, samples: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P(p_1 <= a_1, ..., p_t <= a_t) = a_1 ... a_t, as fractions: over all orders, integrated over the smoothing."""
    total = samples + length
    orders = list(itertools.permutations(range(total)))
    tried(
        "guarantees",
        "orders of few scores: the monitor's smoothed p-values, jointly uniform to the fraction",
        len(orders),
    )
    parts = [online_parts(order, samples, monkeypatch) for order in orders]
    levels = [Fraction(step, 7) for step in range(1, 7)] + [Fraction(1, 20), Fraction(1)]
    tables = [  # the chance that p_t <= a: (greater + u (1 + equal)) / (n + t) with u uniform
        [
            [min(max((a * (samples + 1 + at) - greater) / (1 + equal), Fraction(0)), Fraction(1)) for a in levels]
            for at, (greater, equal) in enumerate(each)
        ]
        for each in parts
    ]
    for chosen in itertools.product(range(0, len(levels), 1 if length < 3 else 3), repeat=length):
        chance, wanted = Fraction(0), Fraction(1)
        for table in tables:
            product = Fraction(1)
            for at, level in enumerate(chosen):
                product *= table[at][level]
            chance += product
        for level in chosen:
            wanted *= levels[level]
        assert chance / len(orders) == wanted

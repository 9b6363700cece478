"""The promise of `keep` and of the monitor against theory: over random splits, every order of few scores, streams."""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.core import flagged_rank, minimum_samples
from opnp.monitor import DriftMonitor
from tests.reliability.guarantees_world import FALSE_FAILURES, require_beta_binomial
from tests.tried import Tried

WIDTH = 6
KINDS = ("paper", "fusion")


@cache
def small_detector(kind: str = "paper") -> OPNP:
    """Return a detector of random features: with a tenth of its weights removed, or a ``"fusion"``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, WIDTH, generator=generator)
    detector = OPNP() if kind == "fusion" else OPNP(ratios=Ratios(w_min=0.1))
    return detector.fit_features(random_features(300, generator), weight=weight, bias=None)


@cache
def ordering_detector(kind: str = "paper") -> OPNP:
    """Return a detector whose score falls with the only feature: equal features get equal scores.

    Of the ``"fusion"`` zero has the score infinity.
    """
    weight = torch.tensor([[1.0], [0.0]])
    if kind == "fusion":
        return OPNP(members=["norm"]).fit_features(torch.arange(100.0, 160.0)[:, None], weight=weight, bias=None)
    return OPNP(ratios=Ratios()).fit_features(torch.arange(-20.0, 20.0)[:, None], weight=weight, bias=None)


def random_features(rows: int, generator: torch.Generator) -> Tensor:
    """Return features of `small_detector`, as good as never with equal scores."""
    return torch.rand(rows, WIDTH, generator=generator)


def compositions(total: int) -> Iterator[list[int]]:
    """Yield every list of positive numbers with this sum: the sizes of groups of equal scores, in ascending order."""
    for cuts in range(1 << (total - 1)):
        sizes = [1]
        for place in range(total - 1):
            if cuts >> place & 1:
                sizes.append(1)
            else:
                sizes[-1] += 1
        yield sizes


SPLITS = [200, pytest.param(2000, marks=pytest.mark.long)]
CASES = [(20, 0.95), (20, 0.8), (79, 0.95), (79, 0.9), (200, 0.95), (200, 0.99), (1000, 0.95), (1000, 0.9)]
QUICK = [(20, 0.95), (79, 0.9), (79, 0.95), (200, 0.95), (1000, 0.95)]
TESTED = {20: 100, 79: 200, 200: 1000, 1000: 4000}


@cache
def ranks_and_flags(samples: int, keep: float, splits: int, kind: str = "paper") -> tuple[Tensor, Tensor]:
    """Return, for each split, the ranks behind the p-values of the tested samples, and how many were flagged."""
    generator = torch.Generator().manual_seed(samples)
    detector, tested = small_detector(kind), TESTED[samples]
    ranks, flagged = torch.empty(splits, tested, dtype=torch.int32), torch.empty(splits, dtype=torch.int64)
    for split in range(splits):
        features = random_features(samples + tested, generator)
        detector.calibrate_features(features[:samples], keep=keep)
        verdict = detector.verdict_features(features[samples:])
        is_ood = detector.predict_features(features[samples:])
        assert is_ood.equal(verdict.is_ood)
        ranks[split] = (verdict.p_value * (samples + 1)).round().int()
        flagged[split] = is_ood.sum()
    return ranks, flagged


@pytest.mark.parametrize(
    ("samples", "keep", "splits"),
    [*((*case, 200) for case in QUICK), *(pytest.param(*case, 2000, marks=pytest.mark.long) for case in CASES)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_flagged_is_beta_binomial(tried: Tried, samples: int, keep: float, splits: int, kind: str) -> None:
    tried("guarantees", "random splits: the count of ID samples flagged against the beta-binomial distribution", splits)
    rank = int((1 - Fraction(str(keep))) * (samples + 1))
    ranks, flagged = ranks_and_flags(samples, keep, splits, kind)
    assert rank == flagged_rank(samples, keep=keep)
    require_beta_binomial(flagged, of=TESTED[samples], samples=samples, rank=rank)
    assert flagged.equal((ranks <= rank).sum(1))
    assert float(flagged.double().mean()) / TESTED[samples] <= 1 - keep + 4 * 0.5 / (samples * splits) ** 0.5


@pytest.mark.parametrize(
    ("samples", "splits"),
    [(20, 200), (79, 200), *(pytest.param(samples, 2000, marks=pytest.mark.long) for samples in TESTED)],
)
@pytest.mark.parametrize("off_by", [-1, 1])
def test_the_same_check_rejects_a_rank_that_is_off_by_one(tried: Tried, samples: int, splits: int, off_by: int) -> None:
    tried("guarantees", "random splits with a rank that is off by one, which the same check rejects", splits)
    rank = flagged_rank(samples, keep=0.95)
    ranks, _ = ranks_and_flags(samples, 0.95, splits)
    require_beta_binomial((ranks <= rank).sum(1), of=TESTED[samples], samples=samples, rank=rank)
    with pytest.raises(AssertionError, match="standard errors off"):
        require_beta_binomial((ranks <= rank + off_by).sum(1), of=TESTED[samples], samples=samples, rank=rank)


@pytest.mark.parametrize("splits", SPLITS)
def test_chi_squared_alone_rejects_a_share_that_does_not_vary(tried: Tried, splits: int) -> None:
    """Counts with the right mean, but of a share that is the same in every split: binomial, and so too narrow."""
    tried("guarantees", "random splits with a share that does not vary, which the same check rejects", splits)
    generator = torch.Generator().manual_seed(1)
    shares = torch.full((splits,), 1000 * 10 / 201, dtype=torch.float64) / 1000
    counts = torch.binomial(torch.full_like(shares, 1000), shares, generator=generator).long()
    with pytest.raises(AssertionError, match="chi-squared"):
        require_beta_binomial(counts, of=1000, samples=200, rank=10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("splits", SPLITS)
def test_the_share_flagged_of_a_models_inputs_is_beta_binomial(tried: Tried, splits: int, kind: str) -> None:
    """The same by `fit`, `calibrate` and `predict` of a model, with loaders of several batches."""
    tried("guarantees", "random splits of a model's inputs, by fit, calibrate, predict and p_value", splits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 4))
    generator = torch.Generator().manual_seed(4)
    detector = OPNP() if kind == "fusion" else OPNP(ratios=Ratios(w_min=0.1, o_min=0.1))
    detector.fit(model, [random_features(300, generator)])
    counts = torch.empty(splits, dtype=torch.int64)
    for split in range(splits):
        inputs = random_features(79 + 200, generator)
        detector.calibrate(inputs[:79].split(33), keep=0.95)
        counts[split] = detector.predict(inputs[79:]).sum()
        if split % 20 == 0:
            p_values = detector.p_value(inputs[79:])
            assert int((p_values * 80 <= 4.5).sum()) == int(counts[split])
    require_beta_binomial(counts, of=200, samples=79, rank=4)


KEEPS = (0.5, 0.75, 0.9, 0.95)


def exchanged(groups: Sequence[int], *, keep: float, kind: str) -> tuple[list[int], int]:
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
        ranks, flagged = exchanged(groups, keep=keep[0], kind=kind)
        require_super_uniform(ranks)
        assert Fraction(flagged, total) <= 1 - Fraction(str(keep[0]))
        # Exactly: the rank of a score is the number of scores that are at least as large, itself included.
        assert ranks == sorted(rank for at, size in enumerate(groups) for rank in [sum(groups[: at + 1])] * size)
        if len(groups) == total:
            assert ranks == list(range(1, total + 1))


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


def most_alarms(runs: int, *, level: float) -> int:
    """Return the number of alarms that a probability of `level` exceeds in one of 10 000 simulations."""
    return int(stats.binom.isf(FALSE_FAILURES, runs, level))


LEVELS = (0.01, 0.05, 0.2)
BATCHES = (1, 17, 3, 64, 2, 31, 5, 7)
STREAMS = ("normal", "ties", "two values", "constant", "heavy tails")


def scores_of(kind: str, count: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(count, generator=generator)
    match kind:
        case "normal":
            return normal
        case "ties":
            return normal.round()
        case "two values":
            return (normal > 1).float()
        case "constant":
            return torch.zeros(count)
        case _:
            return normal / torch.rand(count, generator=generator)


def peak_of(run: int, folder: Path) -> float:
    """Return the greatest log wealth of one stream of 60 to 180 samples; every third run is stopped and goes on."""
    generator = torch.Generator().manual_seed(run)
    samples, kind = (5, 20, 100, 500)[run % 4], STREAMS[run % 5]
    both = scores_of(kind, samples + 60 + run % 121, generator)
    monitor, stream = DriftMonitor(both[:samples], level=0.05, seed=run), both[samples:]
    start, path = 0, folder / "state.safetensors"
    for number, size in enumerate(itertools.islice(itertools.cycle(BATCHES), run % 8, None)):
        if start >= len(stream):
            break
        monitor.update(stream[start : start + size])
        start += size
        if run % 3 == 0 and number == run % 4:
            monitor.save(path)
            monitor = DriftMonitor.load(path)
    found = monitor.summary()
    assert found.samples == len(stream)
    assert (found.alarm_at is not None) == (found.peak_log_wealth >= math.log(1 / 0.05))
    return found.peak_log_wealth


def alarms_at(peaks: list[float], level: float) -> int:
    return sum(peak >= math.log(1 / level) for peak in peaks)


@pytest.mark.parametrize("runs", [80, pytest.param(10_000, marks=pytest.mark.long)])
def test_false_alarms_of_the_monitor_stay_under_the_stated_level(tried: Tried, tmp_path: Path, runs: int) -> None:
    tried("guarantees", "streams without drift through DriftMonitor: ties, odd batches, restarts from a file", runs)
    peaks = [peak_of(run, tmp_path) for run in range(runs)]
    for level in LEVELS:
        most = level * runs if runs >= 10_000 else most_alarms(runs, level=level)
        assert alarms_at(peaks, level) <= most, level
        print(f"{alarms_at(peaks, level)} of {runs} at {level}")  # noqa: T201  # shown where the test fails, or with -s
    # Were there never any, the bound would say nothing.
    assert max(peaks) > 1

"""The share of known inputs that is flagged lies where theory puts it, over random splits, through the detector."""

from fractions import Fraction
from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.core import flagged_rank
from opnp.export import FalseAlarms
from tests.reliability.guarantees_world import (
    FALSE_FAILURES,
    KINDS,
    WIDTH,
    random_features,
    require_beta_binomial,
    small_detector,
)
from tests.tried import Tried

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


@pytest.mark.reliability
def test_the_model_cards_range_is_that_of_the_beta_distribution(tried: Tried) -> None:
    cases = [(n, keep) for n in (19, 20, 79, 200, 999, 1000, 5000) for keep in (0.5, 0.9, 0.95, 0.99)]
    cases = [(n, keep) for n, keep in cases if (1 - Fraction(str(keep))) * (n + 1) >= 1]
    shares = (0.5, 0.9, 0.95, 0.999)
    tried("guarantees", "ranges of false alarms of model cards against the beta distribution", len(cases) * len(shares))
    for samples, keep in cases:
        alarms = FalseAlarms.at(samples, keep=keep)
        theory = stats.beta(alarms.rank, samples + 1 - alarms.rank)
        assert alarms.expected == pytest.approx(theory.mean(), rel=1e-12)
        for share in shares:
            assert alarms.range(share=share) == pytest.approx(theory.interval(share), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("samples", [20, 200])
def test_the_model_cards_range_holds_its_share_of_calibration_sets(
    tried: Tried, samples: int, splits: int, kind: str
) -> None:
    """The share that a calibration set leads to is read off 100 000 samples, nearly all there is to know of it."""
    tried(
        "guarantees", "calibration sets, with the share flagged inside the model card's range in 95 % of them", splits
    )
    detector, generator = small_detector(kind), torch.Generator().manual_seed(samples + 7)
    everything = detector.score_features(random_features(100_000, generator)).double().sort().values
    low, high = FalseAlarms.at(samples, keep=0.95).range()
    inside = 0
    for _ in range(splits):
        detector.calibrate_features(random_features(samples, generator), keep=0.95)
        above = len(everything) - int(torch.searchsorted(everything, detector.threshold, side="right"))
        inside += low <= above / len(everything) <= high
    fewest, most = stats.binom.ppf([FALSE_FAILURES / 2, 1 - FALSE_FAILURES / 2], splits, 0.95)
    assert fewest <= inside <= most

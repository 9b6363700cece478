"""Promises about many inputs at once: discoveries of a batch, shares flagged by class, and bands of thresholds."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from opnp.core import benjamini_hochberg, conformal_p_value, flagged_rank
from opnp.fitted import Calibration
from opnp.report.explorer import LEVEL, share_band, threshold_explorer
from tests.reliability.guarantees_world import FALSE_FAILURES
from tests.tried import Tried

FDR = 0.1
CALIBRATED, TESTED = 1000, 50
BATCHES = [300, pytest.param(2000, marks=pytest.mark.long)]
SPLITS = [200, pytest.param(2000, marks=pytest.mark.long)]

LOCATIONS = torch.tensor([0.0, 1.0, 3.0, -1.0, 2.0])
"""Where the scores of each class lie: the third class is the hard one, the last two are rare."""
SHARES = torch.tensor([0.5, 0.25, 0.2, 0.03, 0.02])


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return scores of ID samples, and their classes."""
    classes = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    return LOCATIONS[classes] + torch.randn(count, generator=generator), classes


def p_values_of_all(scores: Tensor, _: Tensor, calibration: tuple[Tensor, Tensor]) -> Tensor:
    return conformal_p_value(scores, calibration[0])


def p_values_by_class(scores: Tensor, classes: Tensor, calibration: tuple[Tensor, Tensor]) -> Tensor:
    made = Calibration.by_class(*calibration, keep=0.95, class_count=len(SHARES))
    return made.p_value(scores, classes)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("p_values", [p_values_of_all, p_values_by_class])
def test_the_false_discovery_rate_is_at_most_the_level(
    tried: Tried,
    record_property: Callable[[str, object], None],
    p_values: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Tensor],
    share: float,
    batches: int,
) -> None:
    tried("guarantees", "batches of 50 inputs, 0 to 50 % of them OOD: false discoveries, by all and by class", batches)
    generator, outside = torch.Generator().manual_seed(round(100 * share)), round(share * TESTED)
    is_outside = torch.arange(TESTED) < outside
    false, found = torch.zeros(batches, dtype=torch.float64), torch.zeros(batches, dtype=torch.float64)
    for batch in range(batches):
        scores, classes = drawn(TESTED, generator)
        values = p_values(scores + 6.0 * is_outside, classes, drawn(CALIBRATED, generator))
        is_discovery = benjamini_hochberg(values, fdr=FDR)
        false[batch] = (is_discovery & ~is_outside).sum() / is_discovery.sum().clamp(min=1)
        found[batch] = (is_discovery & is_outside).sum()
    error = float(false.std()) / math.sqrt(batches)
    assert float(false.mean()) <= FDR * (1 - share) + 3 * error
    assert float(false.mean()) > 0  # were there never any, the bound would say nothing
    if outside:
        power = float(found.mean()) / outside
        record_property("power", round(power, 4))
        assert power > 0.5


def require_promised(flagged: Tensor, expected: Tensor, *, checks: int) -> None:
    """Fail unless counts of flagged samples are what is promised on average over splits, in a band for all checks."""
    excess = (flagged - expected).double()
    deviation = float(excess.mean()) / (float(excess.std()) / math.sqrt(len(excess)))
    assert abs(deviation) <= NormalDist().inv_cdf(1 - FALSE_FAILURES / (2 * checks)), f"{deviation:.1f} standard errors"


@pytest.mark.parametrize("splits", SPLITS)
def test_each_group_of_classes_is_flagged_as_often_as_promised(tried: Tried, splits: int) -> None:
    """The share of each group is r / (n + 1) exactly, pooled or not, though the groups depend on the samples drawn."""
    tried("guarantees", "random splits: the share flagged of each predicted class, and of the pooled ones", splits)
    keep, samples, tested, classes = 0.95, 300, 400, len(SHARES)
    generator = torch.Generator().manual_seed(0)
    kinds = [*range(3), "pooled"]
    flagged, expected = torch.zeros(2, splits, len(kinds), dtype=torch.float64)
    by_all, pooled = torch.zeros(splits, dtype=torch.float64), set()
    for split in range(splits):
        known = drawn(samples, generator)
        made = Calibration.by_class(*known, keep=keep, class_count=classes)
        scores, labels = drawn(tested, generator)
        is_ood = made.is_ood(scores, labels)
        for group in made.groups:
            own = torch.isin(labels, torch.tensor(group.classes))
            kind = group.classes[0] if group.name.startswith("class") else 3
            flagged[split, kind] += is_ood[own].sum()
            expected[split, kind] += own.sum() * flagged_rank(group.samples, keep=keep) / (group.samples + 1)
            pooled |= {group.classes} if kind == 3 else set()
        by_all[split] = Calibration.from_scores(known[0], keep=keep).is_ood(scores[labels == 2]).sum()
    for place in range(len(kinds)):
        require_promised(flagged[:, place], expected[:, place], checks=len(kinds))
    assert len(pooled) > 1  # now with a larger class among them, now without
    # Calibration by all samples flags the hard class more often, and this check sees it.
    with pytest.raises(AssertionError, match="standard errors"):
        require_promised(by_all, expected[:, 2], checks=len(kinds))


@pytest.mark.parametrize("splits", [150, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("samples", [60, 400])
def test_the_band_of_the_explorer_holds_at_every_threshold_at_once(
    tried: Tried, record_property: Callable[[str, object], None], samples: int, splits: int
) -> None:
    tried("guarantees", "bands of the threshold explorer, held against the true shares at every position", splits)
    random, covered = np.random.default_rng(samples), np.zeros((splits, 2), dtype=bool)
    for split in range(splits):
        scores = {"a": {"test": random.random(samples), "ood_far": np.sqrt(random.random(samples))}}
        [method] = threshold_explorer(scores, {"far": "far"}).methods
        thresholds = np.array(method.thresholds)
        for place, (counts, truth) in enumerate(
            ((method.flagged, 1 - thresholds), (method.sets[0].missed, thresholds**2))
        ):
            low, high = share_band(np.array(counts), samples, thresholds=method.choices)
            covered[split, place] = ((low <= truth) & (truth <= high)).all()
    record_property("covered", covered.mean(axis=0).round(4).tolist())
    assert (covered.mean(axis=0) >= LEVEL - 3 * math.sqrt(LEVEL * (1 - LEVEL) / splits)).all()

"""Discoveries of a batch against the slow version in fractions, and the groups of calibration by class."""

from fractions import Fraction

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from opnp.core import benjamini_hochberg, conformal_p_value
from opnp.core.conformal import ALONE, discovery_samples, fewest_discoveries, minimum_samples, pool_limits
from opnp.fitted import Calibration

FDRS = st.sampled_from(("0.01", "0.05", "0.1", "0.2", "0.3", "0.5", "0.95"))
RANKS = st.lists(st.tuples(st.sampled_from((1, 2, 9, 19, 29, 99, 299)), st.floats(0, 1)), min_size=1, max_size=40)


def slow_discoveries(p_values: list[Fraction], fdr: Fraction) -> list[bool]:
    """Return for each p-value whether some rank k, with k p-values as small as the k-th, lets it through."""
    tested = len(p_values)
    bounds = [p for p in p_values if tested * p <= fdr * sum(other <= p for other in p_values)]
    return [any(p <= bound for bound in bounds) for p in p_values]


@given(ranks=RANKS, fdr=FDRS, seed=st.integers(0, 9), dtype=st.sampled_from((torch.float64, torch.float32)))
@example(ranks=[(99, 0.065), (1, 1.0)], fdr="0.14", seed=0, dtype=torch.float32)  # 7/100, which rounds up
def test_discoveries_are_those_of_the_slow_version_in_any_order(
    ranks: list[tuple[int, float]], fdr: str, seed: int, dtype: torch.dtype
) -> None:
    p_values = [Fraction(1 + int(place * (samples + 1) * 0.999), samples + 1) for samples, place in ranks]
    values = torch.tensor([float(p) for p in p_values], dtype=dtype)
    found = benjamini_hochberg(values, fdr=float(fdr))
    assert found.tolist() == slow_discoveries(p_values, Fraction(fdr))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(benjamini_hochberg(values[order], fdr=float(fdr)), found[order])


@given(samples=st.integers(1, 200), tested=st.integers(1, 300), fdr=FDRS)
def test_the_number_of_calibration_samples_that_discoveries_need_is_exact(samples: int, tested: int, fdr: str) -> None:
    level, fewest = float(fdr), fewest_discoveries(samples, tested=tested, fdr=float(fdr))
    for count in {fewest - 1, fewest} & {*range(1, tested + 1)}:
        p_values = torch.ones(tested, dtype=torch.float64)
        p_values[:count] = 1 / (samples + 1)
        assert bool(benjamini_hochberg(p_values, fdr=level).any()) == (count == fewest)
        assert (discovery_samples(count, tested=tested, fdr=level) <= samples) == (count == fewest)


COUNTS = st.lists(st.sampled_from((0, 0, 1, 3, 8, 9, 10, 11, 12, 30)), min_size=2, max_size=8)


@given(counts=COUNTS.filter(lambda counts: sum(counts) >= 9), data=st.data())
def test_groups_are_those_of_all_samples_with_the_one_to_judge_among_them(
    counts: list[int], data: st.DataObject
) -> None:
    """Exchanged with any other sample of its group, a sample is in the same group: so its p-value is exact."""
    fewest = minimum_samples(keep=0.9)
    limits = pool_limits(torch.tensor(counts), fewest=fewest).tolist()
    judged = data.draw(st.integers(0, len(counts) - 1))

    def group(label: int, others: list[int]) -> set[int]:
        limit = pool_limits(torch.tensor(others), fewest=fewest).tolist()[label]
        pooled = {other for other, count in enumerate(others) if count + (other == label) <= limit}
        return {label} if limit == ALONE else pooled

    mine = group(judged, counts)
    assert judged in mine
    assert sum(counts[label] for label in mine) >= fewest
    assert (limits[judged] == ALONE) <= (counts[judged] >= fewest)
    for other in mine - {judged}:
        if counts[other]:
            swapped = [count + (label == judged) - (label == other) for label, count in enumerate(counts)]
            assert group(other, swapped) == mine


@given(counts=COUNTS.filter(lambda counts: sum(counts) >= 9), seed=st.integers(0, 9))
def test_verdicts_by_class_are_those_of_each_group_alone(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    scores = torch.randint(0, 12, (len(classes),), generator=generator).double()
    order = torch.randperm(len(classes), generator=generator)
    made = Calibration.by_class(scores[order], classes[order], keep=0.9, class_count=len(counts))
    assert sorted(label for group in made.groups for label in group.classes) == [*range(len(counts))]
    tried = torch.arange(13.0).double()
    for group in made.groups:
        for label in group.classes:
            labels = torch.full_like(tried, label).long()
            assert torch.equal(made.p_value(tried, labels), conformal_p_value(tried, group.calibration.scores))
            assert torch.equal(made.is_ood(tried, labels), tried > group.threshold)
        if group.name.startswith("class"):
            assert torch.equal(group.calibration.scores, scores[classes == group.classes[0]].sort().values)

"""Sums and samples of training features do not depend on how the rows are cut, ordered and merged."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core.kept_rows import KeptRows, row_hashes
from opnp.core.moments import FeatureMoments, directions

checked = settings(derandomize=True, deadline=None, database=None, max_examples=60)

CLASSES, WIDTH = 3, 4
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
RANDOM = st.randoms(use_true_random=False)
ROWS = st.lists(
    st.tuples(*[st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-30, 3e5])] * 3), min_size=0, max_size=40
)


def cut(rows: int, random: Random) -> list[slice]:
    """The rows in up to six consecutive parts, some of them empty."""
    edges = [0, *sorted(random.randint(0, rows) for _ in range(random.randint(0, 5))), rows]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def empty_moments() -> FeatureMoments:
    return FeatureMoments.zeros(classes=CLASSES, features=WIDTH)


def merged(parts: Sequence[FeatureMoments], random: Random) -> FeatureMoments:
    """The sum of the parts, two by two, in an order and a grouping drawn at random."""
    left = list(parts)
    while len(left) > 1:
        one, other = (left.pop(random.randrange(len(left))) for _ in range(2))
        left.append(one + other)
    return left[0]


def drawn(seed: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 50, 1])
    return features.to(dtype), torch.randint(CLASSES, (rows,), generator=generator)


def require_equal(found: FeatureMoments, expected: FeatureMoments, features: Tensor) -> None:
    """The sums agree to 1e-12 of the sum of the absolute values of their terms."""
    h, z = features.double().abs(), directions(features.double()).abs()
    for name, terms in {
        "feature": h.sum(0),
        "product": h.T @ h,
        "direction_product": z.T @ z,
        "class_direction": z.sum(0).expand(CLASSES, WIDTH),
    }.items():
        assert getattr(found, name).dtype == torch.float64
        assert bool(((getattr(found, name) - getattr(expected, name)).abs() <= 1e-12 * terms).all()), name
    assert found.count == expected.count == len(features)
    assert found.class_count.equal(expected.class_count)
    assert int(found.class_count.sum()) == found.count


@checked
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 60), dtype=DTYPES, random=RANDOM)
def test_moments_are_the_same_in_any_batches_and_any_grouping(
    seed: int, rows: int, dtype: torch.dtype, random: Random
) -> None:
    features, predicted = drawn(seed, rows, dtype)
    whole = empty_moments().add_(features.double(), predicted)
    batches = cut(rows, random)

    running = empty_moments()
    for batch in batches:
        running = running.add_(features[batch], predicted[batch])
    require_equal(running, whole, features)

    parts = [empty_moments().add_(features[batch], predicted[batch]) for batch in batches]
    require_equal(merged(parts, random), whole, features)
    require_equal(merged([*parts, empty_moments()], random), whole, features)

    absorbing = empty_moments()
    for part in random.sample(parts, len(parts)):
        absorbing = absorbing + FeatureMoments.from_tensors(part.to_tensors(), count=part.count)
    require_equal(absorbing, whole, features)

    order = torch.tensor(random.sample(range(rows), rows), dtype=torch.int64)
    require_equal(empty_moments().add_(features[order], predicted[order]), whole, features)


@checked
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([1e-300, 1e-30, 3.0, 1e30, 1e300]))
def test_directions_have_length_1_at_any_scale(seed: int, factor: float) -> None:
    features, _ = drawn(seed, 7, torch.float64)
    features[2] = 0
    found = directions(features * factor)
    torch.testing.assert_close(found, directions(features), rtol=1e-12, atol=0)
    lengths = torch.ones(7).double().index_fill(0, torch.tensor([2]), 0.0)
    torch.testing.assert_close(found.norm(dim=1), lengths, rtol=1e-12, atol=0)


def table(rows: Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)


def counted(*parts: Tensor) -> Counter[tuple[float, ...]]:
    return Counter(tuple(row) for part in parts for row in part.tolist())


@checked
@given(rows=ROWS, limit=st.integers(1, 12), random=RANDOM)
def test_the_same_rows_are_kept_in_any_order_cut_and_merging(
    rows: list[tuple[float, ...]], limit: int, random: Random
) -> None:
    rows = list({tuple(value + 0.0 for value in row): None for row in rows})  # no copies
    whole = KeptRows.empty(limit, features=3)
    whole.add_(table(rows))
    assert len(whole) == min(limit, len(rows))

    shuffled = table(random.sample(rows, len(rows)))
    running = KeptRows.empty(limit, features=3)
    parts: list[KeptRows] = []
    for batch in cut(len(rows), random):
        running.add_(shuffled[batch])
        parts.append(KeptRows.empty(limit, features=3))
        parts[-1].add_(shuffled[batch])
    assert running.smallest(limit).equal(whole.smallest(limit))

    while len(parts) > 1:
        one, other = (parts.pop(random.randrange(len(parts))) for _ in range(2))
        one.merge_(other)
        parts.append(one)
    assert parts[0].smallest(limit).equal(whole.smallest(limit))


@checked
@given(rows=ROWS, limit=st.integers(1, 12), random=RANDOM)
def test_kept_and_displaced_rows_are_the_rows_put_in(rows: list[tuple[float, ...]], limit: int, random: Random) -> None:
    kept, displaced = KeptRows.empty(limit, features=3), table([])
    for batch in cut(len(rows), random):
        displaced = torch.cat([displaced, kept.add_(table(rows)[batch])])
        done = rows[: batch.stop]
        assert counted(kept.smallest(limit), displaced) == counted(table(done))
        assert len(kept) == min(limit, len(done))
    ordered = kept.hashes.sort().values
    assert bool((ordered[: len(kept)] < 1 << 62).all())


@checked
@given(rows=ROWS, random=RANDOM)
def test_every_row_of_a_block_has_a_hash_of_its_own(rows: list[tuple[float, ...]], random: Random) -> None:
    features = table(rows)
    hashes = row_hashes(features)
    assert bool(((hashes >= 0) & (hashes < 1 << 62)).all())
    assert hashes.unique().numel() == len(rows)
    assert row_hashes(features.double()).equal(hashes)
    order = random.sample(range(len(rows)), len(rows))
    assert row_hashes(features[order]).sort().values.equal(hashes.sort().values)


@pytest.mark.parametrize("spread", [0.3, 1e-2, 1e-4, 0.0])
def test_kept_rows_are_like_the_others(spread: float) -> None:
    """Also where the rows of a class are nearly equal, or copies: a block of them is sampled as any other."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(10, 32, generator=generator)
    classes = torch.arange(10).repeat_interleave(500)
    features = centers[classes] + spread * torch.rand(5000, 32, generator=generator)
    order = torch.randperm(5000, generator=generator)
    features, classes = features[order], classes[order]
    kept = row_hashes(features).argsort()[:1000]
    counts = torch.bincount(classes[kept], minlength=10)
    assert bool(((counts > 60) & (counts < 140)).all())  # 100 each, and four standard deviations
    error = features.std(0) / 1000**0.5
    assert bool(((features[kept].mean(0) - features.mean(0)).abs() < 5 * error).all())

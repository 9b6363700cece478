"""What a pass leaves of the data: the same in any order, batches and grouping, and after any interruption."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp import OPNP, Checkpoint, Ratios, ReAct, Settings
from opnp.core import ValueHistogram, tail_scales
from opnp.core.kept_rows import KeptRows, row_hashes
from opnp.core.moments import directions
from opnp.detector import fit_pass
from opnp.detector.fit_pass import FitSum, feature_blocks, summed_blocks
from opnp.distributed import Ranks
from opnp.fitted import FittedState

checked = settings(derandomize=True, deadline=None, database=None, max_examples=16)

CLASSES, WIDTH, KEPT = 3, 6, 24
ROWS = st.integers(60, 200)
RANDOM = st.randoms(use_true_random=False)
SEEDS = st.integers(0, 10**6)
PAPER = Settings(ratios=Ratios(w_min=0.3, o_max=0.2), precision="float64")
FUSED = Settings.of_fusion()
EXACT = Settings.of_fusion(precision="float64")
KINDS = st.sampled_from([PAPER, Settings(ratios=Ratios(), shaping=ReAct(0.9), precision="float64"), FUSED, EXACT])


@pytest.fixture(autouse=True, scope="module")
def _few_kept_rows() -> Iterator[None]:
    """Let the sample that scales are taken of be smaller than the data: 24 rows, of which a fit may keep 20."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit_pass, "KEPT_ROWS", KEPT)
        yield


def drawn(seed: int, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, and weight and bias of a head."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, WIDTH, generator=generator).abs().to(dtype)
    return features, torch.randn(CLASSES, WIDTH, generator=generator), torch.randn(CLASSES, generator=generator)


def cut(rows: int, random: Random) -> list[slice]:
    """Return the rows in up to six consecutive parts, some of them empty."""
    edges = [0, *sorted(random.randint(0, rows) for _ in range(random.randint(0, 5))), rows]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def merged(parts: Sequence[FitSum], random: Random) -> FitSum:
    """Return the sum of the parts, two by two, in an order and a grouping drawn at random."""
    left = list(parts)
    while len(left) > 1:
        one, other = (left.pop(random.randrange(len(left))) for _ in range(2))
        left.append(one + other)
    return left[0]


def ways(features: Tensor, head: tuple[Tensor, Tensor], options: Settings, random: Random) -> Iterator[FitSum]:
    """Yield what is left by the same rows in other orders, batches and parts."""
    rows = len(features)
    shuffled = features[torch.tensor(random.sample(range(rows), rows))]
    batches = [shuffled[part] for part in cut(rows, random)]
    yield FitSum.of(((batch, None) for batch in batches), *head, options)
    parts = [FitSum.of([(batch, None)], *head, options) for batch in batches]
    yield merged(parts, random)
    yield merged([*parts, FitSum.zeros(*head, options)], random)
    blocks = feature_blocks(shuffled, head[0], size=random.randint(7, rows))
    yield summed_blocks(blocks, FitSum.zeros(*head, options), ranks=Ranks())
    told = FitSum.zeros(*head, options).with_tensors(parts[0].to_tensors(), parts[0].kept)
    yield merged([told, *parts[1:]], random)


def require_equal(found: FitSum, whole: FitSum) -> None:
    """Compare sums to rounding, which float32 logits have more of, and counts and samples exactly."""
    allowed = 1e-12 if whole.settings.precision == "float64" else 1e-5
    one, other = found.sensitivity, whole.sensitivity
    assert one.count == other.count
    torch.testing.assert_close(one.weight, other.weight, rtol=allowed, atol=0)
    torch.testing.assert_close(one.neuron, other.neuron, rtol=10 * allowed, atol=allowed)
    assert (found.histogram is None) is (whole.histogram is None)
    if found.histogram is not None and whole.histogram is not None:
        assert found.histogram.counts.equal(whole.histogram.counts)
    if whole.kept is None or found.kept is None or whole.moments is None or found.moments is None:
        assert (found.kept, found.moments, whole.kept, whole.moments) == (None,) * 4
        return
    assert len(found.kept) == KEPT
    assert torch.equal(found.kept.smallest(KEPT), whole.kept.smallest(KEPT))
    assert found.moments.count == whole.moments.count == one.count
    for name, tensor in whole.moments.to_tensors().items():  # the terms are not negative: nothing cancels
        torch.testing.assert_close(found.moments.to_tensors()[name], tensor, rtol=1e-12, atol=0)


def require_alike(found: FittedState, whole: FittedState, probe: Tensor) -> None:
    """Compare detectors: members and counts exactly, masks where products are float64, scores to 1e-5."""
    assert (found.fused, found.left_out, found.samples) == (whole.fused, whole.left_out, whole.samples)
    if whole.settings.precision == "float64":
        assert all(map(torch.equal, found.pruned.masks, whole.pruned.masks))
    torch.testing.assert_close(found.scores(probe), whole.scores(probe), rtol=1e-5, atol=1e-5)


@checked
@given(seed=SEEDS, rows=ROWS, options=KINDS, random=RANDOM, is_half=st.booleans())
def test_a_pass_leaves_the_same_in_any_order_any_batches_and_any_grouping(
    seed: int, rows: int, options: Settings, random: Random, is_half: bool
) -> None:
    features, *head = drawn(seed, rows, torch.float16 if is_half else torch.float32)
    whole = FitSum.of([(features, None)], head[0], head[1], options)
    state = whole.fitted()
    assert state.samples == rows
    for found in ways(features, (head[0], head[1]), options, random):
        require_equal(found, whole)
        require_alike(found.fitted(), state, drawn(seed + 1, 30)[0])


@checked
@given(seed=SEEDS, rows=ROWS, options=KINDS)
def test_merging_and_fitting_leave_the_parts_as_they_are(seed: int, rows: int, options: Settings) -> None:
    features, weight, bias = drawn(seed, rows)
    parts = [FitSum.of([(part, None)], weight, bias, options) for part in (features[:40], features[40:])]

    def content() -> list[Tensor]:
        found = [tensor for part in parts for tensor in part.to_tensors().values()]
        return found + [tensor for part in parts if part.kept for tensor in (part.kept.hashes, part.kept.rows)]

    before = [tensor.clone() for tensor in content()]
    total = parts[0] + parts[1]
    total.add_(features)
    assert all(map(torch.equal, content(), before))
    both = parts[0] + parts[1]
    once, again = both.fitted(), both.fitted()
    assert torch.equal(once.sensitivity.weight, again.sensitivity.weight)
    assert torch.equal(once.scores(features), again.scores(features))


@checked
@given(seed=SEEDS, rows=st.integers(20, 200), precision=st.sampled_from(["float32", "float64"]))
def test_the_rows_that_give_the_scales_are_in_none_of_the_sums(seed: int, rows: int, precision: Any) -> None:
    """At most 24 here, else a fifth of the rows, but 20 if half of them are as many."""
    features, weight, bias = drawn(seed, rows)
    total = FitSum.of([(features, None)], weight, bias, Settings.of_fusion(["fdbd", "norm"], precision=precision))
    state = total.fitted()
    count = min(KEPT, max(rows // 5, min(20, rows // 2)))
    order = row_hashes(features).argsort()
    kept, others = features[order[:count]].double(), features[order[count:]].double()
    assert len(order.unique()) == rows
    assert state.panel is not None
    assert state.scales is not None
    assert (state.kept, state.sensitivity.count) == (count, rows - count)
    torch.testing.assert_close(state.panel.mean, others.mean(0), rtol=1e-12, atol=0)
    assert state.panel.react_threshold == ValueHistogram.from_values(others.float()).quantile(0.95)
    in_their_precision = kept.to(getattr(torch, precision))
    expected = tail_scales(state.member_scores(in_their_precision, state.fused))
    torch.testing.assert_close(state.scales, expected, rtol=1e-9, atol=0)
    logits = others @ weight.double().T + bias.double()
    by_hand = (logits.softmax(1).T @ others) / len(others)
    torch.testing.assert_close(state.sensitivity.weight, by_hand, rtol=1e-5, atol=0)


class Killed(Exception):  # noqa: N818  # no error: what stands for the end of a process
    """Stands for the end of a process in the middle of a pass."""


@settings(checked, max_examples=10)  # a fusion writes 16 MB down each time
@given(rows=ROWS, options=KINDS, every=st.integers(1, 5), size=st.integers(5, 40), data=st.data())
def test_a_pass_that_was_interrupted_anywhere_ends_in_the_same_bits(
    rows: int, options: Settings, every: int, size: int, data: st.DataObject
) -> None:
    features, weight, bias = drawn(data.draw(SEEDS), rows)

    def fitted(checkpoint: Checkpoint | None, *, blocks: int | None = None) -> FittedState:
        def watched(items: Iterable[Any]) -> Iterator[Any]:
            for place, item in enumerate(items):
                if place == blocks:
                    raise Killed
                yield item

        return (
            OPNP.from_settings(options)
            .fit_features(features, weight=weight, bias=bias, batch_size=size, checkpoint=checkpoint, progress=watched)
            ._fitted()
        )

    straight = fitted(None)
    with TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", every=every)
        for blocks in data.draw(st.lists(st.integers(0, -(-rows // size) - 1), min_size=1, max_size=3)):
            try:
                fitted(checkpoint, blocks=blocks)
            except Killed:
                continue
        found = fitted(checkpoint)
    assert torch.equal(found.sensitivity.weight, straight.sensitivity.weight)
    assert torch.equal(found.sensitivity.neuron_gradient, straight.sensitivity.neuron_gradient)
    assert found.react_thresholds == straight.react_thresholds
    assert torch.equal(found.scores(features), straight.scores(features))
    if straight.panel is not None and found.panel is not None:
        for name, tensor in straight.panel.tensors().items():
            assert torch.equal(found.panel.tensors()[name], tensor), name
        assert found.panel.numbers() == straight.panel.numbers()


TRIPLES = st.lists(
    st.tuples(*[st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-30, 3e5])] * 3), min_size=0, max_size=40
)


@checked
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([1e-300, 1e-30, 3.0, 1e30, 1e300]))
def test_directions_have_length_1_at_any_scale(seed: int, factor: float) -> None:
    features = drawn(seed, 7, torch.float64)[0] * torch.tensor([1.0, -1e-3, 50, 1, -1, 1])
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
@given(rows=TRIPLES, limit=st.integers(1, 12), random=RANDOM)
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
@given(rows=TRIPLES, random=RANDOM)
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


FRACTIONS = st.integers(1, 9999).map(lambda number: f"0.{number:04d}")
HALVES = st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
SINGLES = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=1, max_size=30
)
BRAIN_BITS = st.lists(st.integers(0, 2**16 - 1).filter(lambda bits: bits & 0x7F80 != 0x7F80), min_size=1, max_size=30)
SPECIAL = [0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-14, -65504.0, 65504.0, 1.0, -1.0]


def order_statistic(values: Tensor, fraction: str) -> float:
    """The k-th smallest value, k = max(1, ceil(fraction n))."""
    return float(sorted(values.double().tolist())[max(1, math.ceil(Fraction(fraction) * values.numel())) - 1])


@checked
@given(values=HALVES, fraction=FRACTIONS)
@example(values=SPECIAL, fraction="0.3")
@example(values=SPECIAL, fraction="0.5")
@example(values=SPECIAL, fraction="0.99")
def test_quantiles_of_float16_are_order_statistics(values: list[float], fraction: str) -> None:
    halves = torch.tensor(values, dtype=torch.float16)
    assert ValueHistogram.from_values(halves).quantile(float(fraction)) == order_statistic(halves, fraction)


@checked
@given(patterns=BRAIN_BITS, fraction=FRACTIONS)
@example(patterns=[0x0001, 0x8001, 0x0000, 0x8000, 0x7F7F, 0xFF7F], fraction="0.5")
@example(patterns=[0x0001, 0x8001, 0x0000, 0x8000, 0x7F7F, 0xFF7F], fraction="0.3")
def test_quantiles_of_bfloat16_are_order_statistics(patterns: list[int], fraction: str) -> None:
    """Any finite bit pattern, subnormal ones as well."""
    brains = torch.from_numpy(np.array(patterns, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    assert ValueHistogram.from_values(brains).quantile(float(fraction)) == order_statistic(brains, fraction)


@checked
@given(values=SINGLES, fraction=FRACTIONS)
def test_quantiles_of_float32_lie_within_the_bound_towards_zero(values: list[float], fraction: str) -> None:
    singles = torch.tensor(values, dtype=torch.float32)
    exact, found = order_statistic(singles, fraction), ValueHistogram.from_values(singles).quantile(float(fraction))
    assert abs(exact) * (1 - 2.0**-12) <= abs(found) <= abs(exact)
    assert found * exact >= 0


@checked
@given(values=SINGLES, cuts=st.lists(st.integers(0, 30), max_size=3), choose=st.data())
def test_parts_in_any_order_add_up_to_the_whole(values: list[float], cuts: list[int], choose: st.DataObject) -> None:
    whole = torch.tensor(values)
    shuffled = whole[torch.tensor(choose.draw(st.permutations(range(len(values)))))]
    parts = [ValueHistogram.from_values(part) for part in shuffled.tensor_split(sorted(cuts))]
    parts.append(ValueHistogram.zeros())
    while len(parts) > 1:
        left = parts.pop(choose.draw(st.integers(0, len(parts) - 1)))
        parts.append(left + parts.pop(choose.draw(st.integers(0, len(parts) - 1))))
    assert parts[0].counts.equal(ValueHistogram.from_values(whole).counts)
    assert int(parts[0].counts.sum()) == len(values)

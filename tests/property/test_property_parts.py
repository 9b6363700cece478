"""Parts of the data: every row in exactly one of them, and together they are the whole."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.core.histogram import ValueHistogram
from opnp.data import block_edges
from opnp.detector.fitting import FitSum, fit_sum
from opnp.detector.reservoir import Reservoir
from opnp.detector.settings import Settings
from opnp.distributed import Ranks, row_part

checked = settings(deadline=None, max_examples=60)


@checked
@given(rows=st.integers(0, 10**9), world=st.integers(1, 2000))
def test_every_row_belongs_to_exactly_one_rank(rows: int, world: int) -> None:
    parts = [row_part(rows, rank=rank, world=world) for rank in range(world)]
    assert parts[0][0] == 0
    assert parts[-1][1] == rows
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    sizes = {stop - start for start, stop in parts}
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1
    assert Ranks(rank=world - 1, world=world).part(rows) == parts[-1]


@checked
@given(rows=st.integers(0, 500), size=st.integers(1, 120), world=st.integers(1, 9))
def test_blocks_of_the_parts_are_those_of_the_whole_but_for_the_cuts(rows: int, size: int, world: int) -> None:
    whole = block_edges(rows, size=size)
    cut: list[tuple[int, int]] = []
    for rank in range(world):
        first, last = row_part(rows, rank=rank, world=world)
        blocks = block_edges(last - first, size=size, first_row=first)
        assert all(0 < stop - start <= size for start, stop in blocks)
        cut += ((start + first, stop + first) for start, stop in blocks)
    assert [row for start, stop in cut for row in range(start, stop)] == list(range(rows))
    assert len(set(whole) - set(cut)) <= world - 1
    assert {edge for block in whole for edge in block} <= {edge for block in cut for edge in block}


@checked
@given(
    rows=st.integers(0, 200),
    size=st.integers(1, 60),
    world=st.integers(1, 6),
    cut=st.integers(1, 50),
    is_labelled=st.booleans(),
)
def test_reservoirs_of_the_parts_make_that_of_the_whole(
    rows: int, size: int, world: int, cut: int, is_labelled: bool
) -> None:
    features, labels = torch.arange(float(rows))[:, None], torch.arange(rows)

    def shown(reservoir: Reservoir, first: int, last: int) -> Reservoir:
        for start in range(first, last, cut):
            block = slice(start, min(start + cut, last))
            reservoir.show(features[block], labels[block] if is_labelled else None)
        return reservoir

    whole = shown(Reservoir(size=size, seed=3), 0, rows)
    parts = []
    for rank in range(world):
        first, last = row_part(rows, rank=rank, world=world)
        part = Reservoir(size=size, seed=3)
        part.skip(first)
        parts.append(shown(part, first, last).to_tensors())
    merged = Reservoir.merged(parts, size=size)
    assert torch.equal(merged.sample()[0].flatten(), whole.sample()[0].flatten())
    one, other = merged.sample()[1], whole.sample()[1]
    assert (one is None) is (other is None)
    assert one is None or other is None or torch.equal(one, other)


@checked
@given(rows=st.integers(1, 80), stop=st.integers(0, 80), cut=st.integers(1, 20))
def test_a_reservoir_that_was_written_down_goes_on_as_if_it_had_not_been(rows: int, stop: int, cut: int) -> None:
    features = torch.arange(float(rows))[:, None]
    straight, broken = Reservoir(size=11, seed=5), Reservoir(size=11, seed=5)
    for start in range(0, rows, cut):
        straight.show(features[start : start + cut], None)
        if start >= stop:
            copies = {name: tensor.clone() for name, tensor in broken.to_tensors().items()}
            broken = Reservoir.from_tensors(copies, size=11)
        broken.show(features[start : start + cut], None)
    assert torch.equal(broken.sample()[0], straight.sample()[0])
    assert torch.equal(broken.to_tensors()["keys"], straight.to_tensors()["keys"])
    assert torch.equal(broken.to_tensors()["generator"], straight.to_tensors()["generator"])


@settings(checked, max_examples=20)  # every part may have a histogram of 16 MB
@given(data=st.data(), is_counting=st.booleans())
def test_sums_of_a_fit_add_up_in_any_order_and_as_tensors(data: st.DataObject, is_counting: bool) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    features, weight = torch.randn(40, 5, generator=generator), torch.randn(3, 5, generator=generator)
    options = Settings(precision="float64")
    order = torch.tensor(data.draw(st.permutations(range(40))))

    def summed(rows: torch.Tensor) -> FitSum:
        return fit_sum([(rows, None)], weight=weight, bias=None, settings=options, is_counting=is_counting)

    whole = summed(features)
    total = FitSum.zeros(weight, is_counting=is_counting)
    in_place = FitSum.zeros(weight, is_counting=is_counting)
    for index in order.split(data.draw(st.integers(8, 40))):
        total = total + FitSum.from_tensors(summed(features[index]).to_tensors())
        in_place = in_place.absorbed(summed(features[index]))
    for found in (total, in_place):
        assert found.sensitivity.count == 40
        torch.testing.assert_close(found.sensitivity.weight, whole.sensitivity.weight, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.sensitivity.neuron, whole.sensitivity.neuron, rtol=1e-11, atol=1e-12)
        assert (found.histogram is None) is (not is_counting)
        if found.histogram is not None:
            assert found.histogram.counts.equal(ValueHistogram.from_values(features).counts)
    for name, tensor in total.to_tensors().items():
        assert torch.equal(tensor, in_place.to_tensors()[name])

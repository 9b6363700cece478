"""Parts of the data: every row in exactly one of them, and together they are the whole."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.data import block_edges
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

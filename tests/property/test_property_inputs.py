"""However inputs are cut into blocks, batches, ranks and workers: the same rows, in order, but for unreadable ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opnp.data import InputSet, block_edges
from opnp.data.samples import Names
from opnp.distributed import Ranks, row_part
from opnp.errors import DataFileError, EmptyDataError
from tests.unit.data.text_world import LETTERS, texts_of

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


@dataclass(frozen=True)
class Lines:
    """Numbers as texts, some of which cannot be read, and some of which have no codes."""

    broken: Sequence[bool]
    kind: ClassVar[Literal["text"]] = "text"
    path: Path = Path("lines")
    class_names: None = None

    def __len__(self) -> int:
        return len(self.broken)

    @property
    def names(self) -> Names:
        return Names(len(self), str)

    @property
    def labels(self) -> list[int]:
        return [7 * row for row in range(len(self))]

    def sample(self, index: int) -> str:
        if self.broken[index] and index % 2:
            message = "broken"
            raise DataFileError(message)
        return f"{index}{'#' if self.broken[index] else ''}"

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def read(inputs: InputSet, size: int, rows: range, workers: int) -> list[tuple[str, int]]:
    found = []
    for batch, labels in inputs.batches(size, rows=rows, workers=workers):
        texts = texts_of(batch)
        assert 1 <= len(texts) <= size
        found += list(zip(texts, labels.tolist(), strict=True))
    return found


def check(broken: list[bool], size: int, world: int, workers: int) -> None:
    expected = [(str(row), 7 * row) for row, is_broken in enumerate(broken) if not is_broken]
    reasons = {row: "broken" if row % 2 else "no code for #" for row, is_broken in enumerate(broken) if is_broken}
    found: list[tuple[str, int]] = []
    told: dict[int, str] = {}
    for rank in range(world):
        inputs = InputSet(Lines(broken), LETTERS)
        rows = range(*row_part(len(broken), rank=rank, world=world))
        try:
            found += read(inputs, size, rows, workers)
        except EmptyDataError:
            assert all(broken)
        assert set(inputs.reasons) <= set(rows)
        told |= inputs.reasons
    assert found == expected
    assert told == reasons
    merged = InputSet(Lines(broken), LETTERS)
    for row, reason in told.items():
        merged.skip(row, reason)
    assert [str(row) for row in merged.readable.tolist()] == [text for text, _ in expected]
    assert merged.labels is not None
    assert merged.labels[merged.readable].tolist() == [label for _, label in expected]
    if expected:
        assert read(merged, size, range(len(broken)), workers) == expected
        first, labels = InputSet(Lines(broken), LETTERS).first_batch()
        assert (texts_of(first)[0], int(labels)) == expected[0]


@settings(max_examples=60, deadline=None)
@given(broken=st.lists(st.booleans(), min_size=1, max_size=20), size=st.integers(1, 8), world=st.integers(1, 5))
@example(broken=[True] * 5, size=2, world=2)
@example(broken=[True, True, False], size=3, world=3)
def test_batches_and_ranks_give_the_rows_that_can_be_read(broken: list[bool], size: int, world: int) -> None:
    state = torch.random.get_rng_state()
    check(broken, size, world, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@settings(max_examples=5, deadline=None)
@given(broken=st.lists(st.booleans(), min_size=1, max_size=9), size=st.integers(1, 4), workers=st.integers(1, 2))
def test_so_do_workers(broken: list[bool], size: int, workers: int) -> None:
    check(broken, size, 2, workers)

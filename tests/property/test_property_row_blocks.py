"""Rows come out as they went in, however they were cut, and a batch may be overwritten once the next is asked for."""

from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opnp.core.sensitivity import row_blocks


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_blocks_are_the_rows_in_order_whatever_the_batches(sizes: list[int], rows: int) -> None:
    total = sum(sizes)
    values = torch.arange(2.0 * total).view(total, 2)
    shared = torch.empty(9, 2)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for size in sizes:
            shared[:size] = values[start : start + size]  # one buffer for all batches, as some loaders have
            yield shared[:size], shared[:size, :1] * 10
            start += size

    blocks = [(first.clone(), second.clone()) for first, second in row_blocks(batches(), rows=rows)]
    assert [len(first) for first, _ in blocks] == [rows] * (total // rows) + [total % rows] * (total % rows > 0)
    if blocks:
        assert torch.cat([first for first, _ in blocks]).equal(values)
        assert torch.cat([second for _, second in blocks]).equal(values[:, :1] * 10)


def test_another_dtype_or_width_begins_a_new_block() -> None:
    parts = [torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)]
    found = [
        (len(first), first.dtype, first.shape[1]) for first, _ in row_blocks([(each, each) for each in parts], rows=8)
    ]
    assert found == [(3, torch.float32, 2), (3, torch.float64, 2), (3, torch.float64, 4)]

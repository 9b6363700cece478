"""Blocks of rows where a stream changes in the middle: both tensors of a pair come back, in order."""

import pytest
import torch
from torch import Tensor

from opnp.core.row_blocks import row_blocks


@pytest.mark.parametrize(
    ("other", "sizes"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), [2, 1, 2]),  # another dtype begins a new block
        (torch.zeros(2, 4), [2, 1, 2]),  # another width too
        (torch.zeros(2, 3), [2, 2, 1]),
    ],
    ids=["dtype", "width", "nothing"],
)
def test_what_stands_in_the_buffer_comes_before_a_new_kind_of_rows(other: Tensor, sizes: list[int]) -> None:
    first, second = torch.arange(9.0).view(3, 3), -torch.arange(6.0).view(3, 2)
    pairs = [(first[:1], second[:1]), (first[1:], second[1:]), (other, torch.ones(2, 2))]
    blocks = [(left.clone(), right.clone()) for left, right in row_blocks(pairs, rows=2)]
    assert [len(left) for left, _ in blocks] == [len(right) for _, right in blocks] == sizes
    assert [row for left, _ in blocks for row in left.tolist()] == first.tolist() + other.tolist()
    assert torch.equal(torch.cat([right for _, right in blocks]), torch.cat([second, torch.ones(2, 2)]))


def test_the_second_of_a_pair_can_change_alone() -> None:
    wide = torch.ones(1, 2, dtype=torch.float64)
    blocks = [(len(left), right.dtype) for left, right in row_blocks([(wide, wide.float()), (wide, wide)], rows=2)]
    assert blocks == [(1, torch.float32), (1, torch.float64)]


def test_a_stream_without_rows_has_no_block() -> None:
    assert list(row_blocks([], rows=4)) == []
    assert list(row_blocks([(torch.ones(0, 2), torch.ones(0, 3))], rows=4)) == []

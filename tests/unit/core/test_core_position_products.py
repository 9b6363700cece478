"""Products of positions: memory, devices, and the cut into chunks against one einsum."""

from typing import Any

import pytest
import torch

from opnp.core import position_products
from opnp.core.position_products import absolute_sum, aligned, checked_chunk
from opnp.errors import OptionError


def test_the_memory_suits_the_device_unless_told() -> None:
    assert checked_chunk(None, torch.device("cpu")) == 4 * 2**20
    assert checked_chunk(None, torch.device("meta")) == 256 * 2**20
    assert checked_chunk(1, torch.device("cpu")) == 1


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "4 MiB"])
def test_what_is_no_number_of_bytes_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="`chunk_bytes` must be a whole number of bytes above 0, got"):
        checked_chunk(value, torch.device("cpu"))


@pytest.mark.parametrize("chunk_bytes", [1, 100, 500, 1000, 5000, 2**20])
@pytest.mark.parametrize("positions", [[1], [2], [1, 1], [3, 2], [0, 2], [0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_chunk_gives_the_sum_of_absolute_gradients(
    chunk_bytes: int, positions: list[int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(5, 2, 3, size, generator=generator), torch.randn(5, 2, 4, size, generator=generator))
        for size in positions
    ]
    each = sum(torch.einsum("sgop,sgip->sgoi", left.double(), right.double()) for left, right in pairs)
    found = absolute_sum(pairs, dtype=dtype, chunk_bytes=chunk_bytes)
    assert isinstance(each, torch.Tensor)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found, each.abs().sum(0), rtol=tolerance, atol=tolerance)


def test_aligned_outputs_are_those_that_read_the_input() -> None:
    """Against the definition, over all small cases."""
    for size in range(1, 6):
        for outputs in range(1, 6):
            for offset in range(-4, 5):
                for stride in (1, 2, 3):
                    rows, read = aligned(size, outputs, offset=offset, stride=stride)
                    expected = [y for y in range(outputs) if 0 <= y * stride + offset < size]
                    assert list(range(outputs))[rows] == expected
                    assert list(range(size))[read] == [y * stride + offset for y in expected]


def test_samples_are_summed_in_float64() -> None:
    left = torch.tensor([1.0, 2.0**-30]).view(2, 1, 1, 1) * torch.tensor([1.0, 0.0])
    found = absolute_sum([(left, torch.ones(2, 1, 1, 2))], dtype=torch.float32, chunk_bytes=2**20)
    assert found.item() == 1 + 2**-30


@pytest.mark.parametrize("chunk_bytes", [1, 150, 300, 700, 1500, 2**20])
def test_no_chunk_is_larger_than_the_memory_it_may_take(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least is one output of one sample; copies of what several samples are made of count as well."""
    sizes, whole = [], position_products._gradients  # the part whose size is bounded

    def noted(pairs: Any, *, dtype: torch.dtype) -> torch.Tensor:
        result = whole(pairs, dtype=dtype)
        copies = sum(tensor.numel() for pair in pairs for tensor in pair) * dtype.itemsize
        sizes.append((result.shape[0], result.shape[2], result.numel() * (4 + 8) + copies * (result.shape[0] > 1)))
        return result

    monkeypatch.setattr(position_products, "_gradients", noted)
    pair = torch.ones(6, 1, 5, 2), torch.ones(6, 1, 4, 2)
    absolute_sum([pair], dtype=torch.float32, chunk_bytes=chunk_bytes)
    assert sum(rows * width for rows, width, _ in sizes) == 6 * 5
    assert all(size <= chunk_bytes or (rows, width) == (1, 1) for rows, width, size in sizes)


def test_more_samples_than_a_block_are_each_counted_once() -> None:
    left = torch.randn(2500, 1, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = torch.randn(2500, 1, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = absolute_sum([(left, right)], dtype=torch.float64, chunk_bytes=1)
    expected = left[:, 0, :, 0].abs().T @ right[:, 0, :, 0].abs()
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=0)

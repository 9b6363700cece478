"""Histograms of values: long streams, shapes, the smallest numbers and errors."""

import pytest
import torch

from opnp.core import ValueHistogram
from opnp.errors import EmptyDataError, OptionError


def test_more_than_2_to_the_24_values() -> None:
    """`torch.quantile` refuses so many, and float32 cannot count them."""
    few = ValueHistogram.from_values(torch.tensor([0.0, 2.0, 3.0]))
    histogram = ValueHistogram.from_values(torch.ones(2**24)) + few
    assert int(histogram.counts.sum()) == 2**24 + 3
    assert histogram.quantile(1e-9) == 0.0
    assert histogram.quantile(0.5) == 1.0
    assert histogram.quantile(1 - 1e-9) == 3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_shape_and_floating_dtype(dtype: torch.dtype) -> None:
    values = torch.arange(24, dtype=dtype).view(2, 3, 4) - 8
    flat = ValueHistogram.from_values(values.flatten())
    assert ValueHistogram.from_values(values).counts.equal(flat.counts)
    assert ValueHistogram.from_values(values.transpose(0, 2)).counts.equal(flat.counts)
    assert [flat.quantile(fraction) for fraction in (0.04, 0.25, 0.375, 0.99)] == [-8.0, -3.0, 0.0, 15.0]
    assert ValueHistogram.from_values(values[0, 0, 0]).quantile(0.5) == -8.0


def test_the_share_is_the_decimal_it_is_written_as() -> None:
    """0.7 of 1000 values is the 700th, although 0.7 as a binary fraction times 1000 may lie above 700."""
    histogram = ValueHistogram.from_values(torch.arange(1.0, 1001.0))
    for thousandths in (7, 70, 290, 350, 550, 570, 580, 700, 950, 990):
        assert histogram.quantile(thousandths / 1000) == thousandths


def test_infinite_values_take_the_outermost_bins() -> None:
    histogram = ValueHistogram.from_values(torch.tensor([-torch.inf, -1.0, 0.0, torch.inf]))
    assert [histogram.quantile(fraction) for fraction in (0.25, 0.5, 0.75, 0.99)] == [-torch.inf, -1.0, 0.0, torch.inf]


def test_float32_numbers_below_the_normal_range_are_off_by_less_than_2_to_the_minus_138() -> None:
    for value in (1e-45, 1e-42, 1e-39, -1e-45, -1e-42, -1e-39):
        found = ValueHistogram.from_values(torch.tensor([value])).quantile(0.5)
        assert abs(found - value) < 2.0**-138
        assert abs(found) <= abs(value)


def test_nothing_counted_has_no_quantile() -> None:
    empty = ValueHistogram.zeros() + ValueHistogram.from_values(torch.empty(0, 4))
    assert empty.counts.dtype == torch.int64
    assert ValueHistogram.zeros(device="meta").counts.is_meta
    with pytest.raises(EmptyDataError, match="the quantile of no data is undefined"):
        empty.quantile(0.5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 90])
def test_fractions_outside_their_range_are_refused(fraction: float) -> None:
    with pytest.raises(OptionError, match=r"`fraction` must be a fraction in \(0, 1\)"):
        ValueHistogram.from_values(torch.ones(3)).quantile(fraction)


def test_only_histograms_merge() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = ValueHistogram.zeros() + 1


@pytest.mark.parametrize("count", [0, 1, 1000, 2**18 + 1])
def test_counting_in_place_is_adding(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 100
    first = ValueHistogram.from_values(torch.tensor([-0.0, 0.0, 7.0]))
    expected = first + ValueHistogram.from_values(values)
    first.add_(values)
    assert first.counts.equal(expected.counts)
    assert int(first.counts.sum()) == count + 3

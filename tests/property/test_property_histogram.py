"""Histograms of values: parts add up, quantiles of half precision are exact, others within the documented bound."""

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import ValueHistogram

checked = settings(derandomize=True, deadline=None, database=None, max_examples=40)

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

"""What was counted is known again: whole, grown, from a file; and nothing else is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.serve.counted import CountedScores

STRETCHES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), max_size=6)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(before=STRETCHES, kept=st.integers(0, 40), more=st.lists(st.integers(0, 3), max_size=40))
def test_a_stretch_is_repeated_if_at_least_20_scores_at_its_beginning_were_counted_as_one(
    before: list[list[int]], kept: int, more: list[int]
) -> None:
    counted = CountedScores()
    for values in before:
        counted = counted.joined(torch.tensor(values).float())
    new = (before[0][:kept] if before else []) + more or [0]
    known = [len(old) for old in before if new[: len(old)] == old and len(old) >= 20]
    for each in (counted, CountedScores.from_tensor(counted.to_tensor())):
        assert each.repeated(torch.tensor(new).double()) == max(known, default=0)
        assert each == counted


@pytest.mark.parametrize(("scores", "rows"), [(1, 0), (19, 0), (20, 20)])
def test_saturated_scores_that_come_a_few_at_a_time_are_new_each_time(scores: int, rows: int) -> None:
    values = torch.full((scores,), 0.5)
    counted = CountedScores().joined(values)
    assert counted.repeated(values) == rows
    assert len(counted.to_tensor()) == (rows > 0)


def test_the_bits_count_and_not_the_type() -> None:
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0))
    counted = CountedScores().joined(scores)
    assert counted.repeated(scores.double()) == 30
    assert counted.repeated(scores.nextafter(torch.ones(30))) == 0
    assert counted.repeated(scores.flip(0)) == 0
    assert counted.repeated(scores[:29]) == 0


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3)])
def test_what_is_no_table_of_stretches_is_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="counted stretches of the shape"):
        CountedScores.from_tensor(rows)

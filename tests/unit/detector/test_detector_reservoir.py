"""The reservoir: every row equally likely, bounded, in order, whatever the cut of the stream."""

import itertools

import pytest
import torch
from torch import Tensor

from opnp.detector.reservoir import Reservoir


def rows(count: int) -> Tensor:
    """Rows that say which they are."""
    return torch.arange(float(count))[:, None].repeat(1, 2)


def drawn(count: int, *, size: int, seed: int, cut: int) -> list[int]:
    reservoir = Reservoir(size=size, seed=seed)
    for batch in rows(count).split(cut):
        reservoir.show(batch, None)
    return [int(row) for row in reservoir.sample()[0][:, 0]]


def test_every_row_and_every_pair_is_equally_likely() -> None:
    """5 of 20 rows, 3000 times: a row is drawn 750 times and a pair 157.9 times, standard deviations 23.7 and 12.2.

    Bounds are five standard deviations: with fair draws one of the 210 counts passes them once in 8 000 suites.
    """
    draws = 3000
    single, pairs = torch.zeros(20), torch.zeros(20, 20)
    for seed in range(draws):
        found = drawn(20, size=5, seed=seed, cut=3)
        single[found] += 1
        for one, other in itertools.combinations(found, 2):
            pairs[one, other] += 1
    for counts, chance in ((single, 5 / 20), (pairs[pairs > 0], 5 * 4 / (20 * 19))):
        deviation = (draws * chance * (1 - chance)) ** 0.5
        assert float((counts - draws * chance).abs().max()) < 5 * deviation
    assert int((pairs > 0).sum()) == 20 * 19 / 2


def test_a_bounded_number_of_rows_is_held_at_any_time() -> None:
    reservoir = Reservoir(size=7, seed=0)
    for shown, batch in enumerate(rows(100).split(1), start=1):
        reservoir.show(batch, torch.zeros(1).long())
        features, labels = reservoir.sample()
        assert labels is not None
        assert len(features) == len(labels) == min(shown, 7)


def test_what_is_dropped_is_freed() -> None:
    """A batch of many rows is not kept alive by the few that stay."""
    reservoir = Reservoir(size=2, seed=0)
    reservoir.show(rows(10_000), None)
    assert reservoir.sample()[0].untyped_storage().nbytes() <= 2 * 2 * 4


@pytest.mark.parametrize("cut", [1, 3, 50, 199, 200])
def test_rows_stay_in_order_and_the_cut_changes_nothing(cut: int) -> None:
    found = drawn(200, size=20, seed=4, cut=cut)
    assert found == sorted(set(found))
    assert found == drawn(200, size=20, seed=4, cut=64)


def test_another_seed_gives_another_sample() -> None:
    assert len({tuple(drawn(200, size=20, seed=seed, cut=64)) for seed in range(10)}) == 10


def test_fewer_rows_than_the_size_all_stay() -> None:
    assert drawn(20, size=20, seed=0, cut=6) == list(range(20))


def test_labels_stay_with_their_rows() -> None:
    reservoir = Reservoir(size=20, seed=1)
    for batch in rows(300).split(17):
        reservoir.show(batch, batch[:, 0].to(torch.int32) % 7)
    features, labels = reservoir.sample()
    assert labels is not None
    assert labels.dtype == torch.int64
    assert torch.equal(labels, features[:, 0].long() % 7)


@pytest.mark.parametrize("missing", [1, 2])
def test_labels_missing_in_one_batch_are_missing(missing: int) -> None:
    reservoir = Reservoir(size=30, seed=0)
    for index, batch in enumerate(rows(30).split(10)):
        reservoir.show(batch, None if index == missing else torch.zeros(10).long())
    features, labels = reservoir.sample()
    assert len(features) == 30
    assert labels is None


def test_the_callers_rows_are_copied() -> None:
    batch = rows(5)
    reservoir = Reservoir(size=5, seed=0)
    reservoir.show(batch, None)
    batch.zero_()
    assert torch.equal(reservoir.sample()[0], rows(5))


def test_nothing_shown_is_an_empty_sample() -> None:
    features, labels = Reservoir(size=5, seed=0).sample()
    assert features.shape == (0, 0)
    assert labels is None


def test_an_empty_batch_is_no_batch() -> None:
    reservoir = Reservoir(size=5, seed=0)
    for batch in (rows(0), rows(3), rows(0)):
        reservoir.show(batch, torch.zeros(len(batch)).long())
    features, labels = reservoir.sample()
    assert torch.equal(features, rows(3))
    assert labels is not None

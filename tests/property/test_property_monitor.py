"""The monitor's promises: a martingale from every state, pieces equal the whole, and few false alarms."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.monitor import DriftMonitor, drift_of_p_values
from opnp.monitor.drift import BIN_EDGES, MartingaleState, alarm_threshold, bets, log_wealth
from opnp.monitor.online_p_values import RANKS, earlier_counts, numbered_uniforms
from studies.monitor_streams import alarm_share, known_alarms
from tests.tried import Tried

checked = settings(derandomize=True, deadline=None, database=None, max_examples=40)

SEEDS = st.integers(0, 2**31)
CUTS = st.lists(st.integers(0, 600), max_size=6)


def past_of(samples: int, seed: int, *, power: float) -> Tensor:
    """Return p-values that pile up at 0 for a power above 1, and at 1 below."""
    return torch.rand(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power


def pieces_of(values: Tensor, cuts: list[int]) -> list[Tensor]:
    edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    return [values[low:high] for low, high in itertools.pairwise(edges)]


@checked
@given(samples=st.integers(0, 600), seed=SEEDS, power=st.sampled_from([0.5, 1.0, 1.1, 3.0]), is_one_sided=st.booleans())
def test_the_next_uniform_p_value_leaves_the_expected_wealth_as_it_is(
    samples: int, seed: int, power: float, *, is_one_sided: bool
) -> None:
    """This is the martingale property, without randomness: wealth is constant on each bin, so the mean is a sum."""
    past = past_of(samples, seed, power=power)
    path, state = log_wealth(past, MartingaleState.start(is_one_sided=is_one_sided))
    before = float(path[-1]) if samples else 0.0
    edges = torch.tensor(BIN_EDGES, dtype=torch.float64)
    after = [log_wealth(middle[None], state)[0][0] for middle in (edges[1:] + edges[:-1]) / 2]
    mean = float((edges.diff() * (torch.stack(after) - before).exp()).sum())
    assert mean == pytest.approx(1.0, abs=1e-9)


@checked
@given(samples=st.integers(1, 600), seed=SEEDS, cuts=CUTS)
def test_wealth_in_pieces_is_that_of_the_whole_to_the_bit(samples: int, seed: int, cuts: list[int]) -> None:
    p_values = past_of(samples, seed, power=1.3)
    whole, last = log_wealth(p_values, MartingaleState.start())
    state, found = MartingaleState.start(), []
    for piece in pieces_of(p_values, cuts):
        wealth, state = log_wealth(piece, state)
        found.append(wealth)
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(state.log_active, last.log_active)


@checked
@given(samples=st.integers(1, 600), digits=st.integers(0, 3), seed=SEEDS, cuts=CUTS)
def test_a_monitor_fed_in_pieces_is_that_of_the_whole(samples: int, digits: int, seed: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    calibration = torch.randn(50, generator=generator).round(decimals=digits)
    scores = torch.randn(samples, generator=generator).round(decimals=digits) + 0.5
    whole, parts = DriftMonitor(calibration, seed=seed), DriftMonitor(calibration.flip(0), seed=seed)
    wealth = whole.update(scores)
    assert torch.equal(torch.cat([parts.update(piece) for piece in pieces_of(scores, cuts)]), wealth)
    assert parts.summary() == whole.summary()
    assert whole.alarm_at == next((at for at, value in enumerate(wealth) if value >= alarm_threshold(0.01)), None)


@checked
@given(samples=st.integers(1, 400), digits=st.integers(0, 2), seed=SEEDS)
def test_p_values_alone_never_show_more_than_the_scores_would(samples: int, digits: int, seed: int) -> None:
    """Ties with calibration scores, which p-values do not tell, only make online p-values larger and evidence less."""
    generator = torch.Generator().manual_seed(seed)
    calibration = torch.randn(30, generator=generator).round(decimals=digits)
    scores = torch.randn(samples, generator=generator).round(decimals=digits) + 0.5
    p_values = torch.tensor([(1 + int((calibration >= score).sum())) / 31 for score in scores], dtype=torch.float64)
    found = drift_of_p_values(scores, p_values, calibration_samples=30, seed=seed).log_wealth
    chances = numbered_uniforms(0, samples, seed=seed, sequence=RANKS)
    smoothed = []
    for number, score in enumerate(scores):
        pool = torch.cat([calibration, scores[:number]])
        ties = int((pool == score).sum())
        smoothed.append((int((pool > score).sum()) + float(chances[number]) * (1 + ties)) / (31 + number))
    exact, _ = log_wealth(torch.tensor(smoothed, dtype=torch.float64), MartingaleState.start(is_one_sided=True))
    assert found <= float(exact[-1]) + 1e-9


def test_every_bet_is_a_density_and_the_one_sided_fall_with_the_p_value() -> None:
    widths = torch.tensor(BIN_EDGES, dtype=torch.float64).diff()
    assert torch.allclose(widths @ bets(), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)
    assert bool((bets()[:, :2].diff(dim=0) <= 0).all())


@checked
@given(places=st.lists(st.integers(0, 5), min_size=1, max_size=300), streams=st.integers(1, 3))
def test_earlier_counts_of_several_streams(places: list[int], streams: int) -> None:
    rows = torch.tensor(places)
    several = torch.stack([rows.roll(shift) for shift in range(streams)])
    smaller, equal, counts = earlier_counts(several, torch.zeros(streams, 6, dtype=torch.int64))
    for number, row in enumerate(several.tolist()):
        assert smaller[number].tolist() == [sum(other < own for other in row[:at]) for at, own in enumerate(row)]
        assert equal[number].tolist() == [row[:at].count(own) for at, own in enumerate(row)]
        assert counts[number].tolist() == [row.count(place) for place in range(6)]


def test_p_values_by_one_calibration_set_would_raise_too_many() -> None:
    """Why ranks are taken among the stream as well: the same bets on ordinary conformal p-values break the promise."""
    generator = torch.Generator().manual_seed(0)
    calibration, streams = (torch.randn(200, width, generator=generator).double() for width in (20, 2000))
    at_least = 20 - torch.searchsorted(calibration.sort(1).values, streams)
    chances = torch.rand(streams.shape, generator=generator, dtype=torch.float64)
    naive, _ = log_wealth((at_least + chances) / 21, MartingaleState.start(200))
    assert alarm_share(naive, level=0.01) > 0.5


@pytest.mark.parametrize(
    ("samples", "runs"),
    [(20, 400), *(pytest.param(samples, 10_000, marks=pytest.mark.long) for samples in (100, 1000))],
)
def test_false_alarms_of_streams_of_2000_samples_are_no_more_than_stated(tried: Tried, samples: int, runs: int) -> None:
    tried("guarantees", "streams of 2000 samples without drift, by the martingale of the monitor", runs)
    levels = (0.01, 0.05, 0.2)
    alarms = known_alarms(runs, calibration=samples, length=2000, seed=samples, levels=levels)
    for level, count in zip(levels, alarms, strict=True):
        assert count / runs <= level + 3 * math.sqrt(level * (1 - level) / runs), alarms
    assert alarms[-1] > 0  # were there never any, the bound would say nothing

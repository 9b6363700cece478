import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from opnp.detector.false_alarms import FalseAlarms
from opnp.errors import CalibrationError


@settings(max_examples=40)
@given(samples=st.integers(1, 5000), keep=st.floats(0.001, 0.999), share=st.sampled_from([0.5, 0.95, 0.999]))
def test_the_range_is_that_of_the_beta_distribution(samples: int, keep: float, share: float) -> None:
    try:
        alarms = FalseAlarms.at(samples, keep=keep)
    except CalibrationError:
        return
    tail = (1 - share) / 2
    expected = beta.ppf([tail, 1 - tail], alarms.rank, samples + 1 - alarms.rank)
    assert alarms.range(share=share) == pytest.approx(list(expected), rel=1e-6, abs=1e-9)
    assert alarms.expected == pytest.approx(float(beta.mean(alarms.rank, samples + 1 - alarms.rank)))


def test_calibration_sets_drawn_at_random_lie_in_the_range_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = FalseAlarms.at(99, keep=0.9)
    scores = torch.rand(20_000, 99, generator=generator, dtype=torch.float64).sort(1).values
    flagged = 1 - scores[:, 99 - alarms.rank]  # share of uniform ID scores above the threshold
    low, high = alarms.range(share=0.8)
    assert float(((flagged >= low) & (flagged <= high)).double().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(flagged.mean()) == pytest.approx(alarms.expected, abs=0.001)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(CalibrationError, match="at least 19"):
        FalseAlarms.at(18, keep=0.95)

"""The test martingale: extreme p-values, streams side by side, its histogram and what is refused."""

import math

import pytest
import torch

from opnp.errors import NonFiniteError, OptionError
from opnp.monitor.drift import BIN_EDGES, DriftTest, MartingaleState, bin_of_p_value, log_wealth


def test_wealth_that_no_float_could_hold_has_a_logarithm() -> None:
    wealth, _ = log_wealth(torch.zeros(2000), MartingaleState.start())
    assert bool(wealth.isfinite().all())
    assert float(wealth[-1]) > math.log(1.7e308)


def test_wealth_never_falls_below_what_has_not_jumped() -> None:
    wealth, _ = log_wealth(torch.full((2000,), 0.5), MartingaleState.start(is_one_sided=True))
    waiting = [-math.log(1 + math.log1p(samples / 100)) for samples in range(1, 2001)]
    assert bool((wealth >= torch.tensor(waiting, dtype=torch.float64) - 1e-12).all())


def test_several_streams_are_each_by_itself() -> None:
    p_values = torch.rand(3, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together, _ = log_wealth(p_values, MartingaleState.start(3))
    for number, row in enumerate(p_values):
        assert torch.allclose(together[number], log_wealth(row, MartingaleState.start())[0], rtol=0, atol=1e-12)


def test_bins_hold_their_left_edge() -> None:
    edges = torch.tensor([0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0], dtype=torch.float64)
    assert bin_of_p_value(edges).tolist() == [0, 1, 2, 11, 20, 21, 21]
    below = torch.nextafter(edges[1:-1], torch.zeros(1, dtype=torch.float64))
    assert bin_of_p_value(below).tolist() == [0, 1, 10, 19, 20]
    assert (BIN_EDGES[0], BIN_EDGES[-1]) == (0, 1)


def test_no_p_values_are_no_evidence() -> None:
    test = DriftTest()
    assert test.update(torch.empty(0)).shape == (0,)
    assert test.summary() == DriftTest().summary()
    assert test.state.samples == 0


@pytest.mark.parametrize(
    ("p_values", "error", "message"),
    [
        ([-0.5, 0.5], OptionError, r"must lie in \[0, 1\], got -0.5 to 0.5"),
        ([0.5, 1.5], OptionError, r"must lie in \[0, 1\], got 0.5 to 1.5"),
        ([math.nan, 0.5], NonFiniteError, "`p_values` holds 1 NaN"),
    ],
)
def test_p_values_that_are_none_are_refused(p_values: list[float], error: type[Exception], message: str) -> None:
    test = DriftTest()
    with pytest.raises(error, match=message):
        test.update(torch.tensor(p_values))
    assert test.summary() == DriftTest().summary()

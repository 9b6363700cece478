"""The monitor's promise as its users meet it: odd batches, ties, few calibration samples, and restarts from a file."""

import math
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opnp.monitor import DriftMonitor
from tests.reliability.guarantees_world import most_alarms
from tests.tried import Tried

LEVELS = (0.01, 0.05, 0.2)
BATCHES = (1, 17, 3, 64, 2, 31, 5, 7)
KINDS = ("normal", "ties", "two values", "constant", "heavy tails")


def scores_of(kind: str, count: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(count, generator=generator)
    match kind:
        case "normal":
            return normal
        case "ties":
            return normal.round()
        case "two values":
            return (normal > 1).float()
        case "constant":
            return torch.zeros(count)
        case _:
            return normal / torch.rand(count, generator=generator)


def peak_of(run: int, folder: Path, *, shift: float = 0.0) -> float:
    """Return the greatest log wealth of one stream of 60 to 180 samples; every third run is stopped and goes on."""
    generator = torch.Generator().manual_seed(run)
    samples, kind = (5, 20, 100, 500)[run % 4], KINDS[run % 5]
    both = scores_of(kind, samples + 60 + run % 121, generator)
    monitor, stream = DriftMonitor(both[:samples], level=0.05, seed=run), both[samples:] + shift
    start, path = 0, folder / "state.safetensors"
    for number, size in enumerate(islice(cycle(BATCHES), run % 8, None)):
        if start >= len(stream):
            break
        monitor.update(stream[start : start + size])
        start += size
        if run % 3 == 0 and number == run % 4:
            monitor.save(path)
            monitor = DriftMonitor.load(path)
    found = monitor.summary()
    assert found.samples == len(stream)
    assert (found.alarm_at is not None) == (found.peak_log_wealth >= math.log(1 / 0.05))
    return found.peak_log_wealth


def alarms_at(peaks: list[float], level: float) -> int:
    return sum(peak >= math.log(1 / level) for peak in peaks)


@pytest.mark.parametrize("runs", [80, pytest.param(10_000, marks=pytest.mark.long)])
def test_false_alarms_of_the_monitor_stay_under_the_stated_level(tried: Tried, tmp_path: Path, runs: int) -> None:
    tried("guarantees", "streams without drift through DriftMonitor: ties, odd batches, restarts from a file", runs)
    peaks = [peak_of(run, tmp_path) for run in range(runs)]
    for level in LEVELS:
        most = level * runs if runs >= 10_000 else most_alarms(runs, level=level)
        assert alarms_at(peaks, level) <= most, level
        print(f"{alarms_at(peaks, level)} of {runs} at {level}")  # noqa: T201  # shown where the test fails, or with -s
    # Were there never any, the bound would say nothing.
    assert max(peaks) > 1

"""The stream monitor: alarms, what it keeps, files of its state, and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opnp.artifact import read_artifact, write_artifact
from opnp.errors import (
    ArtifactError,
    CalibrationError,
    EmptyDataError,
    InputTypeError,
    MissingFileError,
    NonFiniteError,
    OpnpError,
    OptionError,
    ShapeError,
)
from opnp.serve.drift import DriftTest
from opnp.serve.monitor import DriftMonitor
from opnp.serve.p_value_stream import drift_of_p_values, inferred_calibration_samples


def normal(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def quantised_p_values(samples: int, rows: int) -> torch.Tensor:
    ranks = torch.randint(1, samples + 2, (rows,), generator=torch.Generator().manual_seed(0))
    return ranks.double() / (samples + 1)


def test_before_the_first_sample_there_is_nothing_to_say() -> None:
    monitor = DriftMonitor(normal(20))
    summary = monitor.summary()
    assert (monitor.samples, monitor.log_wealth, monitor.alarm_at) == (0, 0.0, None)
    assert (summary.small_share, summary.p_value, summary.sentence) == (None, 1.0, "No samples yet.")
    assert monitor.update(torch.empty(0)).shape == (0,)
    assert monitor.summary() == summary


def test_an_alarm_falls_after_the_change_and_stays() -> None:
    monitor = DriftMonitor(normal(1000))
    monitor.update(normal(1000, 1))
    assert monitor.alarm_at is None
    monitor.update(normal(200, 2) + 2)
    at = monitor.alarm_at
    assert at is not None
    assert 1000 <= at < 1050
    monitor.update(normal(3000, 3))
    summary = monitor.summary()
    assert (monitor.alarm_at, summary.samples) == (at, 4200)
    assert f"seen at sample {at + 1} of 4200" in summary.sentence
    assert summary.peak_at is not None
    assert 1000 < summary.peak_at < 1300
    assert summary.peak_log_wealth > summary.log_wealth
    assert summary.p_value == math.exp(-summary.peak_log_wealth)


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (lambda scores: scores + 0.5, 300),
        (lambda scores: scores - 0.5, 400),
        (lambda scores: scores / 3, 600),
        (lambda scores: scores.sign() * (0.7 + scores.abs() / 10), 600),
        (lambda scores: torch.full_like(scores, math.inf), 30),
        (lambda scores: torch.full_like(scores, 0.1), 600),
    ],
    ids=["larger", "smaller", "narrower", "two_heaps", "infinite", "constant"],
)
def test_every_kind_of_change_is_noticed(change: Callable[[torch.Tensor], torch.Tensor], within: int) -> None:
    monitor = DriftMonitor(normal(1000))
    monitor.update(normal(300, 1))
    monitor.update(change(normal(1000, 2)))
    assert monitor.alarm_at is not None
    assert 300 <= monitor.alarm_at < 300 + within


def test_memory_is_that_of_the_calibration_however_long_the_stream() -> None:
    monitor = DriftMonitor(normal(50))
    sizes = []
    for seed in range(3):
        monitor.update(normal(3000, seed + 1))
        values = [value for holder in (monitor, monitor._test) for value in vars(holder).values()]
        state = monitor._test.state
        values += [state.log_active, state.recent]
        sizes.append(sum(value.numel() for value in values if isinstance(value, torch.Tensor)))
    assert len(set(sizes)) == 1
    assert sizes[0] < 6 * 50


def test_counts_and_expectation_are_those_of_a_histogram() -> None:
    monitor = DriftMonitor(normal(500))
    monitor.update(normal(2000, 1))
    summary = monitor.summary()
    assert len(summary.edges) == len(summary.counts) + 1 == 21
    assert sum(summary.counts) == 2000
    assert summary.expected == (100.0,) * 20
    assert summary.small_share == summary.counts[0] / 2000
    assert all(60 < count < 140 for count in summary.counts)
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["samples"] == 2000


def test_a_stored_monitor_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    scores = normal(900, 1).round(decimals=1)
    whole = DriftMonitor(normal(80).round(decimals=1), level=0.05, seed=7)
    wealth = whole.update(scores)
    first = DriftMonitor(normal(80).round(decimals=1), level=0.05, seed=7)
    first.update(scores[:333])
    first.save(tmp_path / "state.safetensors")
    resumed = DriftMonitor.load(tmp_path / "state.safetensors")
    assert torch.equal(resumed.update(scores[333:]), wealth[333:])
    assert resumed.summary() == whole.summary()
    assert (resumed.level, resumed.seed, resumed.calibration_samples) == (0.05, 7, 80)
    assert resumed.is_calibrated_by(normal(80).round(decimals=1).flip(0))
    assert not resumed.is_calibrated_by(normal(80))


def test_a_new_monitor_can_be_stored(tmp_path: Path) -> None:
    DriftMonitor(normal(5)).save(tmp_path / "state.safetensors")
    assert DriftMonitor.load(tmp_path / "state.safetensors").summary() == DriftMonitor(normal(5)).summary()


@pytest.mark.parametrize("name", ["cells", "bins", "log_active", "recent", "wealth", "calibration", "counted"])
def test_a_stored_monitor_that_does_not_fit_together_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "state.safetensors"
    DriftMonitor(normal(5)).save(path)
    tensors, metadata = read_artifact(path, kind="monitor", format_version=1)
    tensors[name] = torch.zeros(3, 2)
    write_artifact(path, kind="monitor", format_version=1, tensors=tensors, metadata=metadata)
    with pytest.raises(ArtifactError, match="holds no monitor that can be read"):
        DriftMonitor.load(path)


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 7), ("samples", -1), ("alarm_at", "soon"), ("alarm_at", 9), ("peak_at", -1)]
)
def test_facts_that_do_not_fit_the_counts_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "state.safetensors"
    monitor = DriftMonitor(normal(5))
    monitor.update(normal(9, 1))
    monitor.save(path)
    tensors, metadata = read_artifact(path, kind="monitor", format_version=1)
    write_artifact(path, kind="monitor", format_version=1, tensors=tensors, metadata=metadata | {name: value})
    with pytest.raises(ArtifactError, match="holds no monitor that can be read"):
        DriftMonitor.load(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        DriftMonitor.load(tmp_path / "none.safetensors")
    write_artifact(tmp_path / "other", kind="detector", format_version=1, tensors={}, metadata={})
    with pytest.raises(ArtifactError, match="holds an opnp detector, not a monitor"):
        DriftMonitor.load(tmp_path / "other")


def test_scores_that_are_refused_change_nothing() -> None:
    monitor = DriftMonitor(normal(20))
    monitor.update(normal(10, 1))
    before = monitor.summary()
    with pytest.raises(NonFiniteError, match="1 NaN"):
        monitor.update(torch.tensor([0.0, math.nan]))
    with pytest.raises(ShapeError, match=r"shape \(batch,\)"):
        monitor.update(torch.zeros(2, 2))
    assert monitor.summary() == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 0.0}, OptionError, r"`level` must be a fraction in \(0, 1\)"),
        ({"level": 5}, OptionError, "written as fractions: 0.05"),
        ({"seed": -1}, OptionError, "`seed` must be at least 0"),
        ({"seed": 0.5}, InputTypeError, "`seed` must be a whole number"),
        ({"seed": True}, InputTypeError, "`seed` must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], error: type[OpnpError], message: str) -> None:
    with pytest.raises(error, match=message):
        DriftMonitor(normal(20), **options)  # type: ignore[arg-type]  # wrong types are what is tested


def test_calibration_must_be_there() -> None:
    with pytest.raises(EmptyDataError, match="`calibration_scores` is empty"):
        DriftMonitor(torch.empty(0))


def test_p_values_outside_0_to_1_are_refused() -> None:
    with pytest.raises(OptionError, match=r"must lie in \[0, 1\], got 0.5 to 1.5"):
        DriftTest().update(torch.tensor([0.5, 1.5]))
    with pytest.raises(NonFiniteError, match="1 NaN"):
        DriftTest().update(torch.tensor([math.nan]))


def test_a_number_that_is_too_large_is_noticed() -> None:
    p_values = quantised_p_values(299, 200)
    with pytest.raises(CalibrationError, match="not those of 599 calibration samples: all are multiples of 1/300"):
        drift_of_p_values(-p_values, p_values, calibration_samples=599)
    assert drift_of_p_values(-p_values, p_values, calibration_samples=299).samples == 200


def test_no_p_values_are_no_evidence() -> None:
    test = DriftTest()
    assert test.update(torch.empty(0)).shape == (0,)
    assert test.summary() == DriftTest().summary()


@pytest.mark.parametrize("samples", [19, 99, 400, 1999, 2000, 65_535])
def test_the_number_of_calibration_samples_is_told_by_their_p_values(samples: int) -> None:
    assert inferred_calibration_samples(quantised_p_values(samples, 150)) == samples


@pytest.mark.parametrize(
    ("p_values", "message"),
    [
        (quantised_p_values(99, 99), "99 p-values are too few"),
        (torch.ones(200, dtype=torch.float64), "do not tell the number"),
        (torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64), "do not tell the number"),
    ],
)
def test_a_number_that_cannot_be_told_is_asked_for(p_values: torch.Tensor, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        inferred_calibration_samples(p_values)


@pytest.mark.parametrize(
    ("scores", "ranks", "samples", "error", "message"),
    [
        ([1.0, 2.0], [3, 2], 8, CalibrationError, "not those of 8 calibration samples"),
        ([1.0, 2.0], [2, 3], 9, CalibrationError, "do not fall as the scores rise"),
        ([1.0, 1.0], [2, 3], 9, CalibrationError, "do not fall as the scores rise"),
        ([1.0, 2.0], [11, 3], 9, CalibrationError, "not those of 9 calibration samples"),
        ([1.0], [3, 2], 9, ShapeError, "must be of one length, got 1 and 2"),
    ],
)
def test_p_values_that_do_not_belong_to_the_scores_are_refused(
    scores: list[float], ranks: list[int], samples: int, error: type[OpnpError], message: str
) -> None:
    p_values = torch.tensor(ranks, dtype=torch.float64) / 10
    with pytest.raises(error, match=message):
        drift_of_p_values(torch.tensor(scores), p_values, calibration_samples=samples)

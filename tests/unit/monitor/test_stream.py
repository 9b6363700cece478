"""The stream monitor: alarms, what it keeps, files of its state, what was counted before, and what it refuses."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.artifact import read_artifact, write_artifact
from opnp.errors import (
    ArtifactError,
    EmptyDataError,
    InputTypeError,
    MissingFileError,
    NonFiniteError,
    OpnpError,
    OptionError,
    ShapeError,
)
from opnp.monitor.stream import CountedScores, DriftMonitor, locked_state
from tests.child_process import started


def normal(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


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
        (lambda scores: torch.where(scores > 1.2, 9.0, scores), 400),
        (lambda scores: scores / 3, 600),
        (lambda scores: torch.full_like(scores, math.inf), 30),
        (lambda scores: torch.full_like(scores, 0.1), 600),
    ],
    ids=["larger", "smaller", "a_tenth_far", "narrower", "infinite", "constant"],
)
def test_changes_are_noticed(change: Callable[[torch.Tensor], torch.Tensor], within: int) -> None:
    monitor = DriftMonitor(normal(1000))
    monitor.update(normal(300, 1))
    monitor.update(change(normal(1000, 2)))
    assert monitor.alarm_at is not None
    assert 300 <= monitor.alarm_at < 300 + within


def test_a_stored_monitor_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    scores = normal(900, 1).round(decimals=1)
    whole = DriftMonitor(normal(80).round(decimals=1), level=0.05, seed=7)
    wealth = whole.update(scores)
    first = DriftMonitor(normal(80).round(decimals=1), level=0.05, seed=7)
    first.update(scores[:333])
    first.counted = CountedScores().joined(scores[:333])
    first.save(tmp_path / "state.safetensors")
    resumed = DriftMonitor.load(tmp_path / "state.safetensors")
    assert torch.equal(resumed.update(scores[333:]), wealth[333:])
    assert resumed.summary() == whole.summary()
    assert (resumed.level, resumed.seed, resumed.calibration_samples) == (0.05, 7, 80)
    assert resumed.counted == first.counted
    assert resumed.is_calibrated_by(normal(80).round(decimals=1).flip(0))
    assert not resumed.is_calibrated_by(normal(80))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
@pytest.mark.parametrize("name", ["cells", "bins", "log_active", "wealth", "calibration"])
def test_a_stored_monitor_that_does_not_fit_together_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    path = tmp_path / "state.safetensors"
    DriftMonitor(normal(5)).save(path)
    tensors, metadata = read_artifact(path, kind="monitor", format_version=2)
    tensors[name] = torch.zeros(shape)
    write_artifact(path, kind="monitor", format_version=2, tensors=tensors, metadata=metadata)
    with pytest.raises(ArtifactError, match="holds no monitor that can be read"):
        DriftMonitor.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("samples", 7), ("samples", -1), ("alarm_at", "soon"), ("alarm_at", 9), ("peak_at", -1), ("counted", [[3]])],
)
def test_facts_that_do_not_fit_the_counts_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "state.safetensors"
    monitor = DriftMonitor(normal(5))
    monitor.update(normal(9, 1))
    monitor.save(path)
    tensors, metadata = read_artifact(path, kind="monitor", format_version=2)
    write_artifact(path, kind="monitor", format_version=2, tensors=tensors, metadata=metadata | {name: value})
    with pytest.raises(ArtifactError, match="holds no monitor that can be read"):
        DriftMonitor.load(path)


def test_a_state_of_an_older_opnp_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_artifact(tmp_path / "old", kind="monitor", format_version=1, tensors={}, metadata={"seed": 0})
    with pytest.raises(ArtifactError, match=r"of an older opnp.*Start a new one, from the first of the files"):
        DriftMonitor.load(tmp_path / "old")


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


def watch(path: Path, rows: int, rounds: int, seed: int) -> None:
    """Give a stored monitor some rows, again and again, as ``opnp monitor`` does; a task for a process."""
    for number in range(rounds):
        with locked_state(path):
            monitor = DriftMonitor.load(path) if path.exists() else DriftMonitor(normal(20))
            monitor.update(normal(rows, seed + number))
            monitor.counted = monitor.counted.joined(normal(20, seed + number))
            monitor.save(path)


def test_of_two_monitors_on_one_state_at_once_50_times_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    processes = [started(watch, path, rows, 50, 100 * rows, log=tmp_path / f"{rows}.log") for rows in (3, 4)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    monitor = DriftMonitor.load(path)
    assert (monitor.samples, len(monitor.counted.stretches)) == (50 * (3 + 4), 100)


def test_a_state_that_cannot_be_written_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is no folder"), locked_state(tmp_path / "none" / "state"):
        pytest.fail("locked")
    assert list(tmp_path.iterdir()) == []


STRETCHES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), max_size=6)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(before=STRETCHES, kept=st.integers(0, 40), more=st.lists(st.integers(0, 3), max_size=40))
def test_a_stretch_is_repeated_if_at_least_20_scores_at_its_beginning_were_counted_as_one(
    before: list[list[int]], kept: int, more: list[int]
) -> None:
    counted = CountedScores()
    for values in before:
        counted = counted.joined(torch.tensor(values).float())
    new = (before[0][:kept] if before else []) + more or [0]
    known = [len(old) for old in before if new[: len(old)] == old and len(old) >= 20]
    assert counted.repeated(torch.tensor(new).double()) == max(known, default=0)


def test_the_bits_count_and_not_the_type() -> None:
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0))
    counted = CountedScores().joined(scores)
    others = (scores.double(), scores.nextafter(torch.ones(30)), scores.flip(0), scores[:29])
    assert [counted.repeated(other) for other in others] == [30, 0, 0, 0]

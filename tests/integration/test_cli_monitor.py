"""``opnp monitor``: score files in, a verdict in words or JSON, exit codes, and messages without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner, Result

from opnp import OPNP, Ratios
from opnp.artifact import write_artifact
from opnp.cli.monitor import monitor
from opnp.data import write_score_table
from opnp.errors import OpnpError


def fitted(*, is_calibrated: bool = True, seed: int = 0) -> OPNP:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 8, generator=generator)
    detector = OPNP(ratios=Ratios()).fit_features(torch.rand(50, 8, generator=generator), weight=weight, bias=None)
    return detector.calibrate_features(inputs(300, seed=1)) if is_calibrated else detector


def inputs(samples: int, *, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(samples, 8, generator=torch.Generator().manual_seed(seed))


def write_scores(path: Path, detector: OPNP, features: Tensor) -> Path:
    """Write a score file with the columns and values of ``opnp score``."""
    columns: dict[str, list[object]] = {"index": [*range(len(features))]}
    if detector.is_calibrated:
        columns |= {name: values.tolist() for name, values in detector.verdict_features(features)._asdict().items()}
    else:
        empty: list[object] = [None] * len(features)
        columns |= {"score": detector.score_features(features).tolist(), "p_value": empty, "is_ood": empty}
    write_score_table(path, columns)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with detectors, and with score files of a quiet stream and of one that drifts away."""
    detector = fitted()
    detector.save(tmp_path / "detector.safetensors")
    fitted(seed=5).save(tmp_path / "other.safetensors")
    fitted(is_calibrated=False).save(tmp_path / "uncalibrated.safetensors")
    write_scores(tmp_path / "quiet.csv", detector, inputs(400, seed=2))
    write_scores(tmp_path / "drifted.parquet", detector, inputs(200, seed=3, scale=0.1))
    write_scores(tmp_path / "short.csv", detector, inputs(20, seed=4))
    write_artifact(tmp_path / "old.safetensors", kind="monitor", format_version=1, tensors={}, metadata={})
    write_scores(tmp_path / "no_p_values.csv", fitted(is_calibrated=False), inputs(120, seed=2))
    return tmp_path


def run(*arguments: object) -> Result:
    alone = typer.Typer(add_completion=False)
    alone.command("monitor")(monitor)
    return CliRunner().invoke(alone, [*map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("is_detector_given", [True, False])
def test_a_quiet_stream(folder: Path, *, is_detector_given: bool) -> None:
    options = ["--detector", folder / "detector.safetensors"] if is_detector_given else []
    found = answer(folder / "quiet.csv", *options)
    assert (found["verdict"], found["alarm_at"], found["alarm_file"]) == ("no alarm", None, None)
    assert (found["samples"], found["calibration_samples"], found["level"]) == (400, 300, 0.01)
    assert found["looked_for"] == (
        "scores that became larger, smaller or more alike" if is_detector_given else "scores that became larger"
    )
    assert found["flagged_share"] == pytest.approx(0.05, abs=0.04)
    assert run(folder / "quiet.csv", *options, "--fail-on-alarm").exit_code == 0


@pytest.mark.parametrize("is_detector_given", [True, False])
def test_a_stream_that_drifts_in_the_second_file(folder: Path, *, is_detector_given: bool) -> None:
    files = [folder / "quiet.csv", folder / "drifted.parquet"]
    options = ["--detector", folder / "detector.safetensors"] if is_detector_given else []
    found = answer(*files, *options)
    assert found["verdict"] == "alarm"
    assert found["alarm_file"] == str(files[1])
    assert found["alarm_at"] == 400 + found["alarm_row"]
    assert found["alarm_row"] < 60
    assert found["sentence"].startswith("Alarm: ")
    assert run(*files, *options).exit_code == 0
    assert run(*files, *options, "--fail-on-alarm").exit_code == 3
    assert run(*files, *options, "--fail-on-alarm", "--json").exit_code == 3


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_the_exit_code_stands_where_nobody_reads_the_text(folder: Path, options: tuple[str, ...]) -> None:
    """``opnp monitor ... --fail-on-alarm | head -1`` once left with 1 under ``set -o pipefail``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "opnp", "monitor", str(folder / "drifted.parquet"), "--fail-on-alarm", *options]
    try:
        found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (3, "")


def test_the_text_says_verdict_level_samples_and_where(folder: Path) -> None:
    text = run(folder / "quiet.csv", folder / "drifted.parquet", "--detector", folder / "detector.safetensors").stdout
    row = answer(folder / "quiet.csv", folder / "drifted.parquet", "--detector", folder / "detector.safetensors")
    assert text.startswith("Alarm: the stream is no longer like the calibration samples")
    assert "with a probability of at most 0.01" in text
    assert f"drifted.parquet, row {row['alarm_row']}" in text.replace("\n", "")
    assert "600" in text
    assert "Flagged: how many inputs are unlike the calibration samples" in text
    assert "p-values up to 0.05: each compared with calibration and all earlier samples" in text
    bars = [line for line in text.splitlines() if "|" in line and "%" in line]
    assert len(bars) == 10
    assert bars[0].count("#") > 2 * bars[5].count("#") > 0


def test_a_stored_state_goes_on_where_it_was(folder: Path) -> None:
    options = ["--detector", folder / "detector.safetensors", "--state", folder / "state.safetensors"]
    whole = answer(folder / "quiet.csv", folder / "drifted.parquet", *options[:2])
    first = answer(folder / "quiet.csv", *options)
    second = answer(folder / "drifted.parquet", *options)
    assert first["samples"] == 400
    assert {name: whole[name] for name in whole if name != "flagged_share"} == {
        name: second[name] for name in second if name != "flagged_share"
    }
    third = run(folder / "short.csv", *options)
    assert "before these files" in third.stdout.replace("\n", "")
    assert answer(folder / "short.csv", *options, "--repeated")["alarm_file"] is None


@pytest.mark.parametrize("is_grown", [False, True])
def test_a_file_that_a_state_has_counted_is_refused_under_any_name(folder: Path, *, is_grown: bool) -> None:
    """Counted again, scores are equal to earlier ones one by one, and that is no news of the stream."""
    options = ["--detector", folder / "detector.safetensors", "--state", folder / "state.safetensors"]
    answer(folder / "short.csv", folder / "quiet.csv", *options)
    before = (folder / "state.safetensors").read_bytes()
    rows = inputs(400, seed=2)
    again = torch.cat([rows, inputs(9, seed=8)]) if is_grown else rows
    write_scores(folder / "again.parquet", fitted(), again)
    part = "the first 400 of its 409 scores" if is_grown else "its 400 scores"
    refused(f"again.parquet: {part} are counted in {folder / 'state.safetensors'}", folder / "again.parquet", *options)
    assert (folder / "state.safetensors").read_bytes() == before
    found = answer(folder / "again.parquet", *options, "--repeated")
    assert found["samples"] == 420 + len(again)
    # What comes next is new, and taken.
    write_scores(folder / "new.csv", fitted(), inputs(9, seed=8))
    assert answer(folder / "new.csv", *options)["samples"] == 429 + len(again)


@pytest.mark.parametrize("is_detector_given", [True, False])
def test_a_file_that_is_given_twice_at_once_is_refused(folder: Path, *, is_detector_given: bool) -> None:
    options = ["--detector", folder / "detector.safetensors"] if is_detector_given else []
    (folder / "copy.csv").write_bytes((folder / "quiet.csv").read_bytes())
    files = [folder / "quiet.csv", folder / "copy.csv"]
    refused(f"copy.csv: its 400 scores are counted with {folder / 'quiet.csv'} already", *files, *options)
    assert answer(*files, *options, "--repeated")["samples"] == 800


def test_a_detector_judges_scores_that_came_before_its_calibration(folder: Path) -> None:
    found = answer(folder / "no_p_values.csv", "--detector", folder / "detector.safetensors")
    assert (found["verdict"], found["flagged_share"]) == ("no alarm", None)


def test_few_p_values_with_the_number_of_samples(folder: Path) -> None:
    assert answer(folder / "short.csv", "--calibration-samples", 300)["verdict"] == "no alarm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "does not exist"),
        (["short.csv"], "20 p-values are too few to tell the number of calibration samples"),
        (["quiet.csv", "--calibration-samples", "299"], "not those of 299 calibration samples"),
        (["no_p_values.csv"], "holds no p-values. Give `--detector`"),
        (["quiet.csv", "--state", "state.safetensors"], "`--state` needs the calibration scores"),
        (["quiet.csv", "--level", "1"], "`level` must be a fraction"),
        (["quiet.csv", "--detector", "other.safetensors"], "was scored by another detector"),
        (["quiet.csv", "--detector", "uncalibrated.safetensors"], "not calibrated"),
        (["quiet.csv", "--detector", "quiet.csv"], "no readable safetensors file"),
        (["quiet.csv", "--detector", "detector.safetensors", "--calibration-samples", "300"], "without `--detector`"),
        (["quiet.csv", "--detector", "detector.safetensors", "--state", "detector.safetensors"], "not a monitor"),
        (["quiet.csv", "--detector", "detector.safetensors", "--state", "old.safetensors"], "of an older opnp"),
    ],
)
def test_what_cannot_be_done_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    refused(message, *arguments)


def test_a_state_of_another_detector_or_level_is_refused(folder: Path) -> None:
    state = folder / "state.safetensors"
    answer(folder / "quiet.csv", "--detector", folder / "detector.safetensors", "--state", state)
    refused(
        "`--level 0.01 --seed 0`",
        *(folder / "quiet.csv", "--detector", folder / "detector.safetensors", "--state", state, "--level", 0.05),
    )
    refused(
        "is of another detector",
        *(folder / "no_p_values.csv", "--detector", folder / "other.safetensors", "--state", state),
    )


def refused(message: str, *arguments: object) -> None:
    """Check that a run ends in an error of opnp, which the command line prints as a message with exit code 2."""
    error = run(*arguments).exception
    assert isinstance(error, OpnpError), error
    assert message in str(error)

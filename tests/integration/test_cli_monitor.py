"""``opnp monitor``: score files in, a verdict in words or JSON, exit codes, and messages without a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp import OPNP, Ratios
from opnp.artifact import write_artifact
from opnp.data import write_score_table
from tests.in_process import Opnp, done, refused


def fitted(*, is_calibrated: bool = True, seed: int = 0) -> OPNP:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 8, generator=generator)
    detector = OPNP(ratios=Ratios()).fit_features(torch.rand(50, 8, generator=generator), weight=weight, bias=None)
    return detector.calibrate_features(inputs(300, seed=1)) if is_calibrated else detector


def inputs(samples: int, *, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(samples, 8, generator=torch.Generator().manual_seed(seed))


def write_scores(path: Path, detector: OPNP, features: Tensor) -> None:
    """Write a score file with the columns and values of ``opnp score``."""
    columns: dict[str, list[object]] = {"index": [*range(len(features))]}
    if detector.is_calibrated:
        columns |= {name: values.tolist() for name, values in detector.verdict_features(features)._asdict().items()}
        if detector.calibrated_by is not None:
            groups = [detector.calibration_group_of(label) for label in columns["predicted_class"]]  # type: ignore[arg-type]  # of numbers
            columns["calibration_samples"] = [group.samples for group in groups]
            columns["calibration_group"] = [group.name for group in groups]
    else:
        empty: list[object] = [None] * len(features)
        columns |= {"score": detector.score_features(features).tolist(), "p_value": empty, "is_ood": empty}
    write_score_table(path, columns)


DETECTOR = "--detector detector.st"
BOTH = pytest.mark.parametrize("options", [DETECTOR, ""], ids=["detector", "alone"])
Answer = Callable[[str], dict[str, Any]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with detectors, and with score files of a quiet stream and of one that drifts away."""
    monkeypatch.chdir(tmp_path)
    detector = fitted()
    detector.save("detector.st")
    fitted(seed=5).save("other.st")
    fitted(is_calibrated=False).save("uncalibrated.st")
    write_scores(Path("quiet.csv"), detector, inputs(400, seed=2))
    write_scores(Path("drifted.parquet"), detector, inputs(200, seed=3, scale=0.1))
    write_scores(Path("short.csv"), detector, inputs(20, seed=4))
    write_artifact(Path("old.st"), kind="monitor", format_version=1, tensors={}, metadata={})
    write_scores(Path("no_p_values.csv"), fitted(is_calibrated=False), inputs(120, seed=2))
    return tmp_path


@pytest.fixture
def answer(opnp: Opnp) -> Answer:
    """Return a function that gives the answer to a command as JSON."""
    return lambda given: json.loads(done(opnp, "monitor", *given.split(), "--json").out)


@BOTH
def test_a_quiet_stream(opnp: Opnp, answer: Answer, options: str) -> None:
    found = answer(f"quiet.csv {options}")
    assert (found["verdict"], found["alarm_at"], found["alarm_file"]) == ("no alarm", None, None)
    assert (found["samples"], found["calibration_samples"], found["level"]) == (400, 300, 0.01)
    others = ", smaller or more alike"
    assert found["looked_for"] == f"scores that became larger{others if options else ''}"
    assert found["flagged_share"] == pytest.approx(0.05, abs=0.04)
    done(opnp, "monitor", "quiet.csv", *options.split(), "--fail-on-alarm")


@BOTH
def test_a_stream_that_drifts_in_the_second_file(opnp: Opnp, answer: Answer, options: str) -> None:
    given = f"quiet.csv drifted.parquet {options}"
    found = answer(given)
    assert (found["verdict"], found["alarm_file"]) == ("alarm", "drifted.parquet")
    assert found["alarm_at"] == 400 + found["alarm_row"]
    assert found["alarm_row"] < 60
    assert found["sentence"].startswith("Alarm: ")
    for more, code in {"": 0, " --fail-on-alarm": 3, " --fail-on-alarm --json": 3}.items():
        assert opnp("monitor", *f"{given}{more}".split()).code == code


@BOTH
def test_a_folder_is_its_parquet_files_in_the_order_of_their_names(answer: Answer, options: str) -> None:
    parts = Path("parts")
    parts.mkdir()
    for start in (200, 0, 100):
        write_scores(parts / f"{start:06}.parquet", fitted(), inputs(400, seed=2)[start : start + 100])
    write_scores(Path("whole.csv"), fitted(), inputs(400, seed=2)[:300])
    assert answer(f"parts {options}") == answer(f"whole.csv {options}")
    assert answer(f"parts drifted.parquet {options}")["alarm_file"] == "drifted.parquet"


def test_the_exit_code_stands_where_nobody_reads_the_text() -> None:
    """``opnp monitor ... --fail-on-alarm | head -1`` once left with 1 under ``set -o pipefail``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "opnp", "monitor", "drifted.parquet", "--fail-on-alarm"]
    try:
        found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (3, "")


def test_the_text_says_verdict_level_samples_and_where(opnp: Opnp, answer: Answer) -> None:
    given = f"quiet.csv drifted.parquet {DETECTOR}"
    text = done(opnp, "monitor", *given.split()).out
    assert text.startswith("Alarm: the stream is no longer like the calibration samples")
    assert "with a probability of at most 0.01" in text
    assert f"drifted.parquet, row {answer(given)['alarm_row']}" in text.replace("\n", "")
    assert "600" in text
    assert "Flagged: how many inputs are unlike the calibration samples" in text
    assert "p-values up to 0.05: each compared with calibration and all earlier samples" in text
    bars = [line for line in text.splitlines() if "|" in line and "%" in line]
    assert len(bars) == 10
    assert bars[0].count("#") > 2 * bars[5].count("#") > 0


def test_a_stored_state_goes_on_where_it_was(opnp: Opnp, answer: Answer) -> None:
    whole = answer(f"quiet.csv drifted.parquet {DETECTOR}")
    assert answer(f"quiet.csv {DETECTOR} --state s.st")["samples"] == 400
    second = answer(f"drifted.parquet {DETECTOR} --state s.st")
    assert {**second, "flagged_share": 0} == {**whole, "flagged_share": 0}
    third = done(opnp, "monitor", *f"short.csv {DETECTOR} --state s.st".split())
    assert "before these files" in third.out.replace("\n", "")
    assert answer(f"short.csv {DETECTOR} --state s.st --repeated")["alarm_file"] is None


@pytest.mark.parametrize("is_grown", [False, True])
def test_a_file_that_a_state_has_counted_is_refused_under_any_name(opnp: Opnp, answer: Answer, is_grown: bool) -> None:
    """Counted again, scores are equal to earlier ones one by one, and that is no news of the stream."""
    options = f"{DETECTOR} --state s.st"
    answer(f"short.csv quiet.csv {options}")
    before = Path("s.st").read_bytes()
    rows = inputs(400, seed=2)
    again = torch.cat([rows, inputs(9, seed=8)]) if is_grown else rows
    write_scores(Path("again.parquet"), fitted(), again)
    part = "the first 400 of its 409 scores" if is_grown else "its 400 scores"
    message = refused(opnp, "monitor", "again.parquet", *options.split())
    assert f"again.parquet: {part} are counted in s.st" in message
    assert Path("s.st").read_bytes() == before
    assert answer(f"again.parquet {options} --repeated")["samples"] == 420 + len(again)
    # What comes next is new, and taken.
    write_scores(Path("new.csv"), fitted(), inputs(9, seed=8))
    assert answer(f"new.csv {options}")["samples"] == 429 + len(again)


@BOTH
def test_a_file_that_is_given_twice_at_once_is_refused(opnp: Opnp, answer: Answer, options: str) -> None:
    Path("copy.csv").write_bytes(Path("quiet.csv").read_bytes())
    message = refused(opnp, "monitor", *f"quiet.csv copy.csv {options}".split())
    assert "copy.csv: its 400 scores are counted with quiet.csv already" in message
    assert answer(f"quiet.csv copy.csv {options} --repeated")["samples"] == 800


def test_scores_without_p_values_need_the_detector_and_few_p_values_the_number_of_samples(answer: Answer) -> None:
    found = answer(f"no_p_values.csv {DETECTOR}")
    assert (found["verdict"], found["flagged_share"]) == ("no alarm", None)
    assert answer("short.csv --calibration-samples 300")["verdict"] == "no alarm"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.csv", "does not exist"),
        ("short.csv", "20 p-values are too few to tell the number of calibration samples"),
        ("quiet.csv --calibration-samples 299", "not those of 299 calibration samples"),
        ("no_p_values.csv", "holds no p-values. Give `--detector`"),
        ("quiet.csv --state s.st", "`--state` needs the calibration scores"),
        ("quiet.csv --level 1", "`level` must be a fraction"),
        ("quiet.csv --detector other.st", "was scored by another detector"),
        ("quiet.csv --detector uncalibrated.st", "not calibrated"),
        ("quiet.csv --detector quiet.csv", "no readable safetensors file"),
        (f"quiet.csv {DETECTOR} --calibration-samples 300", "without `--detector`"),
        (f"quiet.csv {DETECTOR} --state other.st", "not a monitor"),
        (f"quiet.csv {DETECTOR} --state old.st", "of an older opnp"),
    ],
)
def test_what_cannot_be_done_is_said(opnp: Opnp, given: str, message: str) -> None:
    assert message in refused(opnp, "monitor", *given.split())


@pytest.fixture
def grouped() -> OPNP:
    """Return a detector that is calibrated by class, with files of its scores, and one from before it was."""
    detector = fitted()
    write_scores(Path("before.csv"), detector, inputs(400, seed=2))
    detector.calibrate_features(inputs(300, seed=1), by="predicted").save("grouped.st")
    write_scores(Path("quiet.csv"), detector, inputs(400, seed=2))
    write_scores(Path("drifted.parquet"), detector, inputs(200, seed=3, scale=0.1))
    return detector


def test_scores_by_class_are_watched_with_the_detector_and_without(opnp: Opnp, answer: Answer, grouped: OPNP) -> None:
    sizes = [group.samples for group in grouped.calibration_groups]
    assert len(sizes) > 1
    for options, samples in (("--detector grouped.st", 300), ("", f"{min(sizes)} to {max(sizes)}")):
        found = answer(f"quiet.csv {options}")
        assert (found["verdict"], found["calibration_samples"]) == ("no alarm", samples)
        found = answer(f"quiet.csv drifted.parquet {options}")
        assert (found["verdict"], found["alarm_file"]) == ("alarm", "drifted.parquet")
    assert "calibration samples" in done(opnp, "monitor", "quiet.csv").out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("before.csv --detector grouped.st", "before.csv was scored by another detector"),
        (f"quiet.csv {DETECTOR}", "quiet.csv was scored by another detector"),
        ("before.csv drifted.parquet", "before.csv is of a detector that is not calibrated by class"),
        ("quiet.csv --calibration-samples 300", "`--calibration-samples 300` contradicts the files, which say"),
        ("bare.csv --detector grouped.st", "bare.csv has no column `predicted_class`"),
        ("other.csv --detector grouped.st", "other.csv was scored by another detector"),
        ("mixed.csv", "calibration samples: they are not of one detector"),
    ],
)
def test_files_by_class_of_another_detector_are_refused(opnp: Opnp, grouped: OPNP, given: str, message: str) -> None:
    score = grouped.score_features(inputs(30, seed=2)).tolist()
    rows: dict[str, list[object]] = {"score": score, "p_value": [0.5] * 30}
    write_score_table(Path("bare.csv"), rows)
    write_score_table(Path("other.csv"), rows | {"predicted_class": [9] * 30})
    write_score_table(Path("mixed.csv"), rows | {"calibration_samples": [99, *[199] * 29]})
    assert message in refused(opnp, "monitor", *given.split())


def test_a_state_of_another_detector_or_level_is_refused(opnp: Opnp, answer: Answer) -> None:
    answer(f"quiet.csv {DETECTOR} --state s.st")
    level = refused(opnp, "monitor", *f"quiet.csv {DETECTOR} --state s.st --level 0.05".split())
    assert "`--level 0.01 --seed 0`" in level
    other = refused(opnp, "monitor", *["no_p_values.csv", "--detector", "other.st", "--state", "s.st"])
    assert "is of another detector" in other

"""The command line under torchrun: one detector, one table, and a clear end when a rank dies."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.random_shards import write_random_shards
from opnp import OPNP
from opnp.data import open_features, read_head
from tests.distributed.rank_world import ran

SECONDS = 60


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Return what a fit on shards is started with, but for where to write."""
    shards, head = write_random_shards(tmp_path, rows=9001, features=32, classes=12)
    given = ["--features", str(shards), "--head", str(head), "--validation", str(shards), "--rho-w-min", "0.3"]
    return ["fit", *given, "--precision", "float64"]


def torchrun(*arguments: str) -> list[str]:
    """Return the command that starts two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "opnp", *arguments]


@pytest.mark.slow
def test_torchrun_fits_the_detector_of_one_process(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "two.safetensors"
    command = torchrun(*arguments, "--out", str(out), "--json")
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('"training_samples": 9001') == 1  # rank 0 alone speaks
    head = read_head(arguments[4])
    source = open_features(arguments[2])
    together = OPNP.load(out)
    alone = OPNP(ratios=together.settings.ratios, precision="float64").fit_features(
        source, weight=head.weight, bias=head.bias, validation=source
    )
    assert together.sensitivity.count == 9001
    assert torch.equal(together.masks.weight, alone.masks.weight)
    assert torch.equal(together.calibration_scores, alone.calibration_scores)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    """The run would take much longer than it is given; the other rank must not go on to its end."""
    shards, head = write_random_shards(tmp_path, rows=200_000, features=32, classes=12)
    out = tmp_path / "detector.safetensors"
    options = ["--rho-w-min", "0.3", "--batch-size", "1", "--checkpoint", str(tmp_path / "file"), "--out", str(out)]
    command = torchrun("fit", "--features", str(shards), "--head", str(head), *options)
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "file.rank1").exists() and time.monotonic() < deadline:  # in the middle of its pass
            time.sleep(0.05)
        os.kill(child_of(run.pid, number=1), signal.SIGKILL)
        code = run.wait(SECONDS)
    assert code != 0
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "Signal 9 (SIGKILL)" in text
    assert "rank      : 1" in text
    assert not out.exists()


def child_of(parent: int, *, number: int) -> int:
    """Return the process of a rank among the children of torchrun, by its environment."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in status.read_text(encoding="ascii")
            if is_child and f"\0RANK={number}\0".encode() in status.with_name("environ").read_bytes():
                return int(status.parent.name)
        except OSError:
            continue
    message = f"torchrun {parent} has no rank {number}"
    raise ProcessLookupError(message)


@pytest.mark.parametrize("world", [2, 3])
def test_scores_of_ranks_are_one_table_in_the_order_of_the_rows(
    tmp_path: Path, arguments: list[str], world: int
) -> None:
    detector, table = tmp_path / "detector.safetensors", tmp_path / "scores.csv"
    assert ran(tmp_path, 1, [*arguments, "--out", str(detector)])[0][0] == 0
    scoring = ["score", "--detector", str(detector), "--features", arguments[2], "--out", str(table), "--json"]
    found = ran(tmp_path, world, scoring)
    assert [code for code, _ in found] == [0] * world, found
    assert '"samples": 9001' in found[0][1]
    assert [text for _, text in found[1:]] == [""] * (world - 1)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    alone = OPNP.load(detector).verdict_features(open_features(arguments[2]).read(0, 9001)[0])
    assert [int(row["index"]) for row in rows] == list(range(9001))
    scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(scores, alone.score, rtol=1e-12, atol=1e-12)
    assert [row["is_ood"] == "True" for row in rows] == alone.is_ood.tolist()
    assert [int(row["predicted_class"]) for row in rows] == alone.predicted_class.tolist()


def test_more_ranks_than_rows(tmp_path: Path, arguments: list[str]) -> None:
    detector, table = tmp_path / "detector.safetensors", tmp_path / "scores.csv"
    (tmp_path / "few").mkdir()
    shards, _ = write_random_shards(tmp_path / "few", rows=2, features=32, classes=12)
    assert ran(tmp_path, 1, [*arguments, "--out", str(detector)])[0][0] == 0
    command = ["score", "--detector", str(detector), "--features", str(shards), "--out", str(table)]
    assert [code for code, _ in ran(tmp_path, 3, command)] == [0, 0, 0]
    assert len(table.read_text(encoding="utf-8").splitlines()) == 3


def test_an_error_names_the_rank_it_came_from(tmp_path: Path, arguments: list[str]) -> None:
    found = ran(tmp_path, 2, [*arguments, "--out", str(tmp_path / "missing" / "detector.safetensors")])
    assert [code for code, _ in found] == [2, 2]
    assert found[0][1].startswith("opnp: rank 0 of 2: ")
    assert "missing is no folder" in found[0][1]
    assert found[1][1].startswith("opnp: rank 1 of 2: rank 0 of 2 failed: ")
    assert "Traceback" not in found[0][1] + found[1][1]

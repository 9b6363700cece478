"""The command line under torchrun: one detector, one table, and one error."""

import csv
import subprocess
import sys
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


@pytest.mark.slow
def test_torchrun_fits_the_detector_of_one_process(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "two.safetensors"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "opnp", *arguments, "--out", str(out), "--json"]
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


@pytest.mark.parametrize("world", [2, 3])
def test_scores_of_ranks_are_one_table_in_the_order_of_the_rows(
    tmp_path: Path, arguments: list[str], world: int
) -> None:
    """The last time there are more ranks than rows."""
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
    (tmp_path / "few").mkdir()
    few, _ = write_random_shards(tmp_path / "few", rows=world - 1, features=32, classes=12)
    command = ["score", "--detector", str(detector), "--features", str(few), "--out", str(table)]
    assert [code for code, _ in ran(tmp_path, world, command)] == [0] * world
    assert len(table.read_text(encoding="utf-8").splitlines()) == world


def test_an_error_names_the_rank_it_came_from(tmp_path: Path, arguments: list[str]) -> None:
    found = ran(tmp_path, 2, [*arguments, "--out", str(tmp_path / "missing" / "detector.safetensors")])
    assert [code for code, _ in found] == [2, 2]
    assert found[0][1].startswith("opnp: rank 0 of 2: ")
    assert "missing is no folder" in found[0][1]
    assert found[1][1].startswith("opnp: rank 1 of 2: rank 0 of 2 failed: ")
    assert "Traceback" not in found[0][1] + found[1][1]

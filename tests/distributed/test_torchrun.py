"""The command line under torchrun: one detector, one table and one error, also where a rank is lost."""

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
from tests.distributed.rank_world import begun, ran
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, class_images
from tests.unit.data.image_files import save_image

SECONDS = 240
"""A generous limit, for a machine that does much else."""


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


def test_scores_of_ranks_are_one_table_in_the_order_of_the_rows(tmp_path: Path, arguments: list[str]) -> None:
    """The last time there are more ranks than rows."""
    world, detector, table = 3, tmp_path / "detector.safetensors", tmp_path / "scores.csv"
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


MODEL = ("--model", "tests.unit.bench.image_world:tiny_model", *OPTIONS, "--batch-size", "4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of folders of images, of which some cannot be read."""
    unreadable = {"train": {3, 30}, "validation": {0}, "test": {5, 6, 7}}
    for seed, (name, count) in enumerate({"train": 31, "validation": 24, "test": 8}.items()):
        for index, image in enumerate(class_images(count, seed=seed)[0]):
            path = save_image(tmp_path / name / f"{index:02d}.png", image)
            if index in unreadable[name]:
                path.write_text("no image", encoding="utf-8")
    return tmp_path


def run(folder: Path, world: int, *arguments: str) -> list[str]:
    """Run the command line on ranks, and return what each wrote."""
    found = ran(folder, world, arguments)
    assert [code for code, _ in found] == [0] * world, found
    return [text for _, text in found]


@pytest.mark.parametrize("options", [("--rho-w-min", "0.2"), ()], ids=["paper", "fusion"])
def test_ranks_fit_and_score_as_one_process_does(folder: Path, options: tuple[str, ...]) -> None:
    detectors, tables = [], []
    for world in (1, 3):
        detector, table = folder / f"detector{world}.safetensors", folder / f"scores{world}.csv"
        data = ("--data", str(folder / "train"), "--validation", str(folder / "validation"), "--precision", "float64")
        first, *others = run(folder, world, "fit", *MODEL, *data, *options, "--out", str(detector))
        assert "train: 2 of 31 inputs could not be read: 03.png (no image), 30.png (no image)" in first
        assert "validation: 1 of 24 inputs could not be read: 00.png" in first
        assert others == [""] * (world - 1)
        # The last of three ranks has images that cannot be read, and nothing else.
        given = ("--detector", str(folder / "detector1.safetensors"), "--data", str(folder / "test"))
        first, *others = run(folder, world, "score", *MODEL, *given, "--out", str(table), "--json")
        assert '"unreadable": 3' in first
        assert others == [""] * (world - 1)
        detectors.append(OPNP.load(detector))
        tables.append([line.split(",") for line in table.read_text(encoding="utf-8").splitlines()])
    alone, together = detectors
    assert together.samples == alone.samples == 29
    assert together.members == alone.members
    assert torch.equal(together.masks.weight, alone.masks.weight)
    if options:
        assert torch.equal(together.calibration_scores, alone.calibration_scores)
    torch.testing.assert_close(together.calibration_scores, alone.calibration_scores, rtol=1e-6, atol=1e-6)
    assert [row[:3] for row in tables[1]] == [row[:3] for row in tables[0]]
    assert [row[1] for row in tables[1]] == ["name", "00.png", "01.png", "02.png", "03.png", "04.png"]
    scores = [torch.tensor([float(row[3]) for row in table[1:]]) for table in tables]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-6, atol=1e-6)


FIXED = ("--rho-w-min", "0.3")
PATIENCE = "600"
"""Seconds that ranks are told to wait for another; once one is gone they must end long before."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "options"),
    [
        ((2, 1), signal.SIGKILL, ()),
        *(
            pytest.param(place, number, FIXED, marks=pytest.mark.long)
            for place in ((2, 0), (2, 1), (3, 1), (3, 2))
            for number in (signal.SIGKILL, signal.SIGTERM)
        ),
    ],
)
def test_others_end_when_a_rank_is_gone_and_all_go_on_later(
    tmp_path: Path, place: tuple[int, int], number: signal.Signals, options: tuple[str, ...], tried: Tried
) -> None:
    """The victim ends in the middle of its pass; the others come to the end of theirs and wait for it."""
    tried("faults", "ranks killed or stopped, the fit then resumed")
    world, victim = place  # how many ranks, and which of them is killed
    shards, head = write_random_shards(tmp_path, rows=9_000 * world, features=64, classes=12)
    out, checkpoint = tmp_path / "d.safetensors", tmp_path / "fit.checkpoint"
    fit = ["fit", "--features", str(shards), "--head", str(head), *options, "--batch-size", "256"]
    fit += ["--out", str(out), "--rank-timeout", PATIENCE, "--checkpoint", str(checkpoint)]
    expected = finished(tmp_path, world, fit, out)
    processes = begun(tmp_path, world, [*fit, "--checkpoint-every", "1"])
    lost, log = processes[victim]
    while not (tmp_path / f"fit.checkpoint.rank{victim}").exists() and lost.is_alive():
        time.sleep(0.001)
    assert lost.pid is not None
    os.kill(lost.pid, number)
    for process, _ in processes:
        process.join(SECONDS)
    codes = [process.exitcode for process, _ in processes]
    assert codes[victim] == (-number if number == signal.SIGKILL else 128 + number), log.read_text(encoding="utf-8")
    for rank, (_, path) in enumerate(processes):
        text = path.read_text(encoding="utf-8")
        assert "Traceback" not in text
        if rank != victim:
            assert codes[rank] == 2, text
            assert text.startswith(f"opnp: rank {rank} of {world}: ")
            assert "lost" in text
    assert not out.exists()
    assert finished(tmp_path, world, [*fit, "--checkpoint-every", "1"], out) == expected


def finished(folder: Path, world: int, arguments: list[str], out: Path) -> bytes:
    """Run the command to its end on all ranks, and return the detector."""
    found = ran(folder, world, arguments)
    assert [code for code, _ in found] == [0] * world, found
    content = out.read_bytes()
    out.unlink()
    return content


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_rank_whose_loader_fails_is_named_by_the_others(tmp_path: Path, victim: int, tried: Tried) -> None:
    tried("faults", "ranks whose loader raises")
    for index, image in enumerate(class_images(24, seed=0)[0]):
        path = save_image(tmp_path / "train" / f"{index:02d}.png", image)
        if index == (5, 20)[victim]:
            path.write_text("no image", encoding="utf-8")
    fit = ["fit", "--model", "tests.unit.bench.image_world:tiny_model", *OPTIONS, "--batch-size", "4", "--strict"]
    fit += ["--data", str(tmp_path / "train"), "--rho-w-min", "0.2", "--out", str(tmp_path / "d")]
    codes, said = zip(*ran(tmp_path, 2, fit), strict=True)
    assert codes == (2, 2), said
    assert "cannot be read" in said[victim] or "no image" in said[victim]
    assert f"rank {victim} of 2 failed: " in said[1 - victim]
    assert not (tmp_path / "d").exists()

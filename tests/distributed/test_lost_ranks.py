"""Ranks that are killed, that fail in their loader, or are told to stop: the others end soon, and say why."""

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.random_shards import write_random_shards
from tests.distributed.rank_world import begun, ran
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, class_images
from tests.unit.data.image_files import save_image

SECONDS = 60
FIXED = ("--rho-w-min", "0.3")
PATIENCE = "600"
"""Seconds that ranks are told to wait for another; once one is gone they must end long before."""


@pytest.mark.parametrize(
    ("place", "number", "options"),
    [
        ((2, 1), signal.SIGKILL, FIXED),
        ((2, 1), signal.SIGKILL, ()),
        *(
            pytest.param(place, number, FIXED, marks=pytest.mark.long)
            for place in ((2, 0), (3, 1), (3, 2))
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

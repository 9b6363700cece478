"""``kill -9`` at any moment, and the same command again: the same detector, bit for bit."""

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from benchmarks.random_shards import write_random_shards
from tests.child_process import command_line, rank_environments, started
from tests.tried import Tried

SECONDS = 300
"""Limit for a single run."""
_KILLS = "kills of a fit, each resumed"


class Runs:
    """The same command again and again, of one process or of several ranks, killed or left to its end."""

    def __init__(self, folder: Path, *, world: int, options: tuple[str, ...] = ()) -> None:
        shards, head = write_random_shards(folder, rows=30_000, features=64, classes=12)
        self.folder, self.world = folder, world
        self.out, self.checkpoint = folder / "detector.safetensors", folder / "fit.checkpoint"
        self._arguments = ["fit", "--features", str(shards), "--head", str(head), "--batch-size", "256", *options]

    def written(self) -> list[Path]:
        """Return the checkpoints that there are."""
        return sorted(self.folder.glob(f"{self.checkpoint.name}*"))

    def start(self, *, is_kept: bool = True) -> list[BaseProcess]:
        """Start the command, with a checkpoint or without."""
        kept = ["--checkpoint", str(self.checkpoint), "--checkpoint-every", "4"] if is_kept else []
        arguments = [*self._arguments, *kept, "--out", str(self.out), "--rank-timeout", "60"]
        environments: list[dict[str, str]] = rank_environments(self.world) if self.world > 1 else [{}]
        return [
            started(command_line, arguments, environment, log=self.folder / f"log{rank}")
            for rank, environment in enumerate(environments)
        ]

    def finish(self, processes: list[BaseProcess]) -> bytes:
        """Wait for the end of a run, and return the detector it wrote."""
        for rank, process in enumerate(processes):
            process.join(SECONDS)
            assert process.exitcode == 0, (self.folder / f"log{rank}").read_text(encoding="utf-8")
        content = self.out.read_bytes()
        self.out.unlink()
        return content


def changed(checkpoint: Callable[[], list[tuple[Path, int]]], processes: list[BaseProcess], times: int) -> None:
    """Wait until a checkpoint was written some times, or the run is over."""
    for _ in range(times):
        before = checkpoint()
        while checkpoint() == before and any(process.is_alive() for process in processes):
            time.sleep(0.001)


def survives(folder: Path, *, kills: int, world: int = 1, options: tuple[str, ...] = (), seed: int = 0) -> None:
    """Kill a fit at random moments until it was killed so often, and compare what comes of it in the end."""
    chance = random.Random(seed)  # noqa: S311  # moments, no secrets
    runs = Runs(folder, world=world, options=options)
    expected = runs.finish(runs.start(is_kept=False))
    begun = time.monotonic()
    assert runs.finish(runs.start()) == expected
    duration = time.monotonic() - begun
    assert not runs.written()

    def state() -> list[tuple[Path, int]]:
        return [(path, path.stat().st_mtime_ns) for path in runs.written() if path.exists()]

    landed = going_on = 0
    while landed < kills:
        going_on += bool(runs.written())
        processes = runs.start()
        if landed % 2 == 0:
            changed(state, processes, chance.randint(1, 3))
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0, duration))
        victim = chance.choice(processes)
        if victim.is_alive() and victim.pid is not None:
            victim.kill()
            victim.join(SECONDS)
            landed += victim.exitcode == -signal.SIGKILL
        if victim.exitcode == 0:  # too late: it had ended, and begins anew
            assert runs.finish(processes) == expected
            continue
        for process in processes:
            process.terminate()  # as torchrun does with the others
            process.join(SECONDS)
            assert process.exitcode is not None
        if runs.out.exists():  # killed after it was written, or another rank than the one that writes
            assert runs.out.read_bytes() == expected
            runs.out.unlink()
    assert runs.finish(runs.start()) == expected
    assert going_on > kills // 3  # so many of the runs did not begin at the beginning
    left = {path.name for path in folder.iterdir()}
    assert {name for name in left if "checkpoint" in name or "detector" in name} <= left_parts(left)


def left_parts(names: set[str]) -> set[str]:
    """Return the half-written detectors among names: a kill at that very moment leaves one, and nothing reads it."""
    return {name for name in names if name.startswith(".detector") and name.endswith(".part")}


FIXED = ("--rho-w-min", "0.3", "--rho-o-max", "0.05")
COUNTING = (*FIXED, "--shaping", "react:0.9")


@pytest.mark.slow
def test_five_kills_of_the_fit_of_a_fusion(tmp_path: Path, tried: Tried) -> None:
    tried("faults", _KILLS, 5)
    survives(tmp_path, kills=5, seed=1)


@pytest.mark.long
@pytest.mark.parametrize(("options", "kills"), [(FIXED, 20), (COUNTING, 20), ((), 10)])
def test_fifty_kills(tmp_path: Path, options: tuple[str, ...], kills: int, tried: Tried) -> None:
    """Without ratios the rows that give the scales are in the checkpoint as well."""
    tried("faults", _KILLS, kills)
    survives(tmp_path, kills=kills, options=options, seed=2)


@pytest.mark.long
@pytest.mark.parametrize(("options", "kills"), [(FIXED, 20), ((), 5)], ids=["paper", "fusion"])
def test_kills_of_one_of_two_ranks(tmp_path: Path, options: tuple[str, ...], kills: int, tried: Tried) -> None:
    tried("faults", "kills of one of two ranks of a fit, each resumed", kills)
    survives(tmp_path, kills=kills, world=2, options=options, seed=3)

"""Ranks for tests: processes joined by gloo, a task on each, and what came of it."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from opnp.distributed import Ranks
from opnp.errors import OpnpError
from tests.child_process import command_line, rank_environments, started

Task = Callable[..., Any]
"""A function of a module that takes `Ranks` and further arguments, and returns tensors or plain values."""


def on_ranks(
    folder: Path, world: int, task: Task, *arguments: object, seconds: float = 240, patience: float = 120
) -> list[Any]:
    """Return what a task returned on each rank; the message of an error of opnp in its place, None for a dead rank.

    Args:
        folder: An existing folder for what they write.
        world: Number of ranks.
        task: What each does.
        arguments: What it is given besides its place.
        seconds: Limit for all of it.
        patience: Seconds that a rank waits for another.

    """
    run = folder / f"ranks-{time.monotonic_ns()}"
    run.mkdir()
    processes = [
        started(_joined, run, Ranks(rank, world), patience, task, arguments, log=run / f"log{rank}")
        for rank in range(world)
    ]
    deadline = time.monotonic() + seconds
    for rank, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            for other in processes:
                other.kill()
            message = f"rank {rank} did not end in {seconds} s: {(run / f'log{rank}').read_text(encoding='utf-8')}"
            raise TimeoutError(message)
    found = []
    for rank, process in enumerate(processes):
        path = run / f"result{rank}"
        log = (run / f"log{rank}").read_text(encoding="utf-8")
        assert path.exists() or process.exitcode != 0, log
        assert "Traceback" not in log, log
        found.append(torch.load(path)["result"] if path.exists() else None)
    return found


def _joined(run: Path, ranks: Ranks, patience: float, task: Task, arguments: tuple[object, ...]) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{run / 'store'}",
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=timedelta(seconds=patience),
    )
    try:
        result = task(Ranks.joined(), *arguments)
    except OpnpError as error:
        result = f"{type(error).__name__}: {error}"
    torch.save({"result": result}, run / f"part{ranks.rank}")
    (run / f"part{ranks.rank}").rename(run / f"result{ranks.rank}")
    os._exit(0)  # what gloo has to say of ranks that are gone is of no interest


def begun(folder: Path, world: int, arguments: Sequence[str]) -> list[tuple[BaseProcess, Path]]:
    """Start the command line on ranks, without torchrun, and return processes and logs."""
    logs = [folder / f"log{rank}" for rank in range(world)]
    return [
        (started(command_line, list(arguments), environment, log=log), log)
        for environment, log in zip(rank_environments(world), logs, strict=True)
    ]


def ran(folder: Path, world: int, arguments: Sequence[str]) -> list[tuple[int | None, str]]:
    """Run the command line on ranks, and return exit code and output of each; None after some minutes."""
    processes = begun(folder, world, arguments)
    for process, _ in processes:
        process.join(240)
    return [(process.exitcode, log.read_text(encoding="utf-8")) for process, log in processes]

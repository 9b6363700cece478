"""Processes of their own for tests: forked from one that has imported torch already, so that each starts at once."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

__all__ = ["command_line", "rank_environments", "started"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["opnp.bench", "opnp.cli.bench", "opnp.cli.fit", "opnp.cli.running", "tests.child_process"]
)


def started(task: Callable[..., Any], *arguments: object, log: Path) -> BaseProcess:
    """Return a process that runs a function of a module, with its output in a file."""
    process = _CONTEXT.Process(target=_run, args=(task, arguments, log), daemon=True)
    process.start()
    return process


def command_line(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Run ``opnp`` with these arguments and leave with its exit code; a task for `started`."""
    from opnp.cli import main

    os.environ.update(environment)
    sys.argv = ["opnp", *arguments]
    main()


def rank_environments(world: int) -> list[dict[str, str]]:
    """Return what torchrun would put into the environment of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _run(task: Callable[..., Any], arguments: tuple[object, ...], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("w", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            task(*arguments)
        except Exception:
            traceback.print_exc()
            raise

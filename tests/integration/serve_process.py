"""``opnp serve`` in a process of its own, with a small model."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
from torch import Tensor, nn

from opnp.cli.app import named_command
from tests.child_process import started
from tests.unit.bench.image_world import OPTIONS, tiny_model
from tests.unit.serve.serve_world import fitted

__all__ = ["SECONDS", "Served", "address_of", "all_begun", "serving", "slow_model"]

SECONDS = 0.4
"""Seconds that `slow_model` takes for a batch."""


class _Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(SECONDS)
        logits: Tensor = self.inner(inputs)
        return logits


def slow_model() -> nn.Module:
    """Return a model that answers as `tiny_model`, later."""
    return _Slow()


@dataclass(frozen=True)
class Served:
    """A running service.

    Attributes:
        address: Where it answers.
        process: Its process.
        log: What it has written.

    """

    address: str
    process: BaseProcess
    log: Path


@contextmanager
def serving(folder: Path, *options: str, model: str = "tests.unit.bench.image_world:tiny_model") -> Iterator[Served]:
    """Run the service of `fitted` on a free port; it is killed at the end if it still runs."""
    fitted()[0].save(folder / "detector.safetensors")
    log = folder / "serve.log"
    arguments = ["--detector", str(folder / "detector.safetensors"), "--model", model, *OPTIONS, "--port", "0"]
    process = started(_serve, [*arguments, *options], log=log)
    try:
        yield Served(address_of(process, log), process, log)
    finally:
        process.kill()
        process.join()


async def all_begun(address: str, count: int) -> None:
    """Wait until so many requests are in work or answered."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        begun = 0.0
        while begun < count:
            text = (await client.get("/metrics")).text
            found = re.findall(
                r'^opnp_(?:requests_in_work|requests_total{path="/score",status="200"}) (\S+)', text, re.MULTILINE
            )
            begun = sum(map(float, found))
            await asyncio.sleep(0.01)


def _serve(arguments: list[str]) -> None:
    """Run the command; what it writes goes to the log, whatever it took for its standard error."""
    os.dup2(sys.stderr.fileno(), 2)
    named_command("serve").main(args=arguments, prog_name="opnp serve")


def address_of(process: BaseProcess, log: Path) -> str:
    """Return where a service answers, from its log."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.is_alive():
        found = re.search(r"http://[\w.:]+", log.read_text(encoding="utf-8")) if log.exists() else None
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text(encoding="utf-8") if log.exists() else "the service wrote nothing")

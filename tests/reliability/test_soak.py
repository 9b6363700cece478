"""A service under load with bad requests mixed in: all good ones answered, memory and latency flat, a clean stop."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.serve_process import Served, serving
from tests.reliability.soak_checks import (
    MIB,
    require_flat_latency,
    require_flat_memory,
    require_flat_work,
)
from tests.reliability.soak_requests import LIMITS, bad_requests, good_requests
from tests.reliability.soak_world import Line, Soak, lines_open
from tests.tried import Tried

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process takes is read from /proc, which Linux alone has"
)

QUICK, LONG = 6.0, 300.0
GROWTH = {QUICK: 24 * MIB, LONG: 12 * MIB}
"""Bytes by which memory may grow from the second fifth to the last."""


def port_of(served: Served) -> int:
    return int(served.address.rpartition(":")[2])


def soaked(served: Served, seconds: float) -> Soak:
    good_requests(), bad_requests()  # made before the clock starts
    soak = Soak(port_of(served), seconds, served.process.pid or 0)
    asyncio.run(soak.run(clients=4, pause=0.02))
    return soak


@pytest.mark.parametrize("seconds", [QUICK, pytest.param(LONG, marks=pytest.mark.long)])
def test_a_service_under_load_answers_all_and_grows_in_nothing(tmp_path: Path, tried: Tried, seconds: float) -> None:
    with serving(tmp_path, *LIMITS) as served:
        soak = soaked(served, seconds)
        tried("serving", "good requests to a service under load, each verdict compared with the library's", soak.good)
        tried("serving", "bad requests among them, from garbage to senders that stall", soak.bad.total())
        assert soak.wrong == []
        assert len(soak.bad) == len(bad_requests()) + (1 if seconds == QUICK else 2)
        require_flat_latency(soak.latencies, soak.controls, seconds)
        require_flat_work(soak.footprints, seconds)
        require_flat_memory(soak.footprints, seconds, most=GROWTH[seconds])
        assert 'status="5' not in httpx.get(f"{served.address}/metrics").text
        stop_among_stalled_senders(served)
        log = served.log.read_text(encoding="utf-8")
        assert len(log.splitlines()) == 1, log  # the address alone: no traceback, and no line for each bad request


def stop_among_stalled_senders(served: Served) -> None:
    """Fail unless senders that stall hinder neither good requests nor a stop."""
    whole = good_requests()[0].content
    cut = whole.index(b"\r\n\r\n")

    async def stop() -> list[int]:
        lines = await lines_open(port_of(served), [b"", whole[: cut // 2], whole[: cut + 9]] * 100)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        for case in good_requests()[:10]:
            line = await Line.opened(port_of(served))
            assert (await line.ask(case.content))[0] == 200
            await line.close()
        assert time.monotonic() - began < 5
        os.kill(served.process.pid or 0, signal.SIGTERM)
        statuses = [(await line.answer())[0] for line in lines[2::3]]
        for line in lines:
            assert await line.reader.read() == b""
            await line.close()
        return statuses

    began = time.monotonic()
    assert asyncio.run(stop()) == [408] * 100
    served.process.join(30)
    assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")
    assert time.monotonic() - began < 30


@pytest.mark.long
def test_a_soak_finds_a_model_that_leaks_and_slows_down(tmp_path: Path, tried: Tried) -> None:
    tried("serving", "services that leak memory and slow down, found by the soak", 1)
    with serving(tmp_path, *LIMITS, model="tests.reliability.soak_world:leaking_model") as served:
        soak = soaked(served, 16)
    with pytest.raises(AssertionError, match="slower"):
        require_flat_latency(soak.latencies, soak.controls, 16)
    with pytest.raises(AssertionError, match="memory grew"):
        require_flat_memory(soak.footprints, 16, most=GROWTH[QUICK])

"""A service under load with bad requests mixed in: all good ones answered, it grows in nothing, and stops cleanly."""

import asyncio
import os
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.integration.serve_process import Served, serving
from tests.reliability.soak_requests import LIMITS, bad_requests, good_requests
from tests.reliability.soak_world import Footprint, Line, Soak, lines_open
from tests.tried import Tried

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process takes is read from /proc, which Linux alone has"
)

MIB = 1 << 20
QUICK, LONG = 6.0, 300.0
GROWTH = {QUICK: 24 * MIB, LONG: 12 * MIB}
"""Bytes by which memory may grow from the second fifth to the last."""


def require_no_growth(found: Sequence[Footprint], seconds: float, *, most: int) -> None:
    """Fail if the last fifth takes more than the second: memory, threads, open files, or work for a request.

    A request of it may take half as much processor time again, which is nearly the same whatever the machine does.
    """
    second, last = (
        [each for each in found if part * seconds / 5 <= each.at < (part + 1) * seconds / 5] for part in (1, 4)
    )

    def growth(name: str) -> float:
        after, before = (statistics.median(getattr(each, name) for each in part) for part in (last, second))
        return float(after - before)

    memory = growth("memory")
    assert memory <= most, f"memory grew by {memory / MIB:.1f} MiB"
    assert max(each.threads for each in last) <= max(each.threads for each in second), "threads appeared"
    assert growth("files") <= 10, "open files grew"
    before, after = ((part[-1].work - part[0].work) / (part[-1].answered - part[0].answered) for part in (second, last))
    assert after <= 1.5 * before + 0.0005, f"work grew from {1000 * before:.2f} to {1000 * after:.2f} ms a request"


def port_of(served: Served) -> int:
    return int(served.address.rpartition(":")[2])


@pytest.mark.parametrize("seconds", [QUICK, pytest.param(LONG, marks=pytest.mark.long)])
def test_a_service_under_load_answers_all_and_grows_in_nothing(tmp_path: Path, tried: Tried, seconds: float) -> None:
    good_requests(), bad_requests()  # made before the clock starts
    with serving(tmp_path, *LIMITS) as served:
        soak = Soak(port_of(served), seconds, served.process.pid or 0)
        asyncio.run(soak.run(clients=4, pause=0.02))
        tried("serving", "good requests to a service under load, each verdict compared with the library's", soak.good)
        tried("serving", "bad requests among them, from garbage to senders that stall", soak.bad.total())
        assert soak.wrong == []
        assert len(soak.bad) == len(bad_requests()) + (1 if seconds == QUICK else 2)
        require_no_growth(soak.footprints, seconds, most=GROWTH[seconds])
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
        for case in good_requests()[:10]:
            line = await Line.opened(port_of(served))
            assert (await line.ask(case.content))[0] == 200
            await line.close()
        os.kill(served.process.pid or 0, signal.SIGTERM)
        statuses = [(await line.answer())[0] for line in lines[2::3]]
        for line in lines:
            assert await line.reader.read() == b""
            await line.close()
        return statuses

    assert asyncio.run(stop()) == [408] * 100
    served.process.join(30)
    assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "end", "message"),
    [
        ("memory", 325 * MIB, "memory grew by 1"),
        ("threads", 6, "threads appeared"),
        ("files", 80, "open files grew"),
        ("work", 0.004, "work grew"),
        ("work", 0.002, ""),
    ],
)
def test_the_check_of_a_soak_finds_growth_of_each_kind(name: str, end: float, message: str, tried: Tried) -> None:
    tried("serving", "soaks with growth of one kind, found by their checks")
    start = {"memory": 300.0 * MIB, "files": 20.0, "threads": 5.0, "work": 0.002}
    found = []
    for step in range(3000):
        taken = {each: value + (step / 3000 * (end - value) if each == name else 0) for each, value in start.items()}
        whole = {each: int(taken[each] + 0.1) for each in ("memory", "files", "threads")}
        found.append(Footprint(step / 50, **whole, work=step * taken["work"], answered=step))
    if not message:
        require_no_growth(found, 60, most=12 * MIB)
        return
    with pytest.raises(AssertionError, match=message):
        require_no_growth(found, 60, most=12 * MIB)

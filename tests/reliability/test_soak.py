"""A service under load with bad requests mixed in: all good ones answered, it grows in nothing, and stops cleanly."""

import asyncio
import json
import os
import signal
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from PIL import Image

from tests.integration.serve_process import Served, serving
from tests.tried import Tried
from tests.unit.serve.serve_world import fitted, image_bytes, inputs_of, pictures, require_equal, verdict_json

LIMITS = ("--max-bytes", "200KB", "--max-pixels", "1000000")
"""Options of the service that is soaked: limits that small requests go beyond."""


def request(
    path: str = "/score", body: bytes = b"", *, kind: str | None = None, method: str = "POST", **more: str
) -> bytes:
    """Return a request of HTTP/1.1 as bytes."""
    headers = {"Host": "soak", "Content-Length": str(len(body)), **more}
    if kind is not None:
        headers["Content-Type"] = kind
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Good:
    """A good request: its bytes, and what the library says of its inputs."""

    content: bytes
    expected: tuple[dict[str, Any], ...]
    is_list: bool


@cache
def good_requests() -> list[Good]:
    """Return good requests: pictures, arrays, and lists of arrays."""
    detector, model = fitted()
    images = pictures(40, seed=21)
    inputs = inputs_of(images)
    wanted = verdict_json(detector, model, inputs)
    found = [
        Good(request(body=image_bytes(image), kind="image/png"), (verdict,), is_list=False)
        for image, verdict in zip(images, wanted, strict=True)
    ]
    for start in range(0, 40, 8):
        rows = inputs[start : start + 8]
        body = json.dumps(rows.tolist()).encode()
        found.append(Good(request(body=body, kind="application/json"), tuple(wanted[start : start + 8]), is_list=True))
        body = json.dumps(rows[0].tolist()).encode()
        found.append(Good(request(body=body, kind="application/json"), (wanted[start],), is_list=False))
    return found


@dataclass(frozen=True)
class Bad:
    """A request that gets no verdict: its bytes, and the status of its answer.

    The end of a connection with bytes that nobody read may overtake the answer: such a sender may see itself cut off.
    """

    name: str
    content: bytes
    status: int
    may_be_cut_off: bool = False


def _array(value: object) -> bytes:
    return json.dumps([[[value] * 8] * 8] * 3).encode()


@cache
def bad_requests() -> list[Bad]:
    """Return bad requests that are answered all the same."""
    picture = image_bytes(pictures(1, seed=0)[0])
    numbers = _array(0.5)
    kind = {"kind": "application/json"}
    large = b"x" * 300_000
    chunked = b"".join(b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
    chunks = request(kind="image/png", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    wide = Image.new("1", (1100, 1000))
    return [
        Bad("malformed JSON", request(body=numbers[:-7], **kind), 422),
        Bad("JSON that is no text", request(body=b"\xff\xfe\x00" * 9, **kind), 422),
        Bad("nested JSON", request(body=b"[" * 50_000, **kind), 422),
        Bad("a wrong shape", request(body=json.dumps([[0.5] * 8] * 8).encode(), **kind), 422),
        Bad("NaN", request(body=_array(float("nan")), **kind), 422),
        Bad("a number beyond float32", request(body=_array(1e300), **kind), 422),
        Bad("numbers at which the model overflows", request(body=_array(3e38), **kind), 422),
        Bad("a text for a number", request(body=_array("1"), **kind), 422),
        Bad("too many inputs", request(body=json.dumps([[[[0] * 8] * 8] * 3] * 65).encode(), **kind), 422),
        Bad("an empty body", request(kind="image/png"), 422),
        Bad("half a picture", request(body=picture[: len(picture) // 2], kind="image/png"), 422),
        Bad("a picture of too many pixels", request(body=image_bytes(wide), kind="image/png"), 422),
        Bad("no picture", request(body=os.urandom(64), kind="image/png"), 422),
        Bad("an unknown content type", request(body=b"x", kind="text/plain"), 415),
        Bad("no content type", request(body=b"x"), 415),
        Bad("a compressed body", request(body=b"x", kind="image/png", Content_Encoding="gzip"), 415),
        Bad("a huge body", request(body=large, kind="image/png"), 413),
        Bad("a huge body in chunks", chunks + chunked, 413),
        Bad(
            "a length beyond all numbers", request(kind="image/png").replace(b"Length: 0", b"Length: " + b"9" * 30), 400
        ),
        Bad("a wrong method", request(method="PUT", body=numbers, **kind), 405),
        Bad("GET of /score", request(method="GET"), 405),
        Bad("an unknown path", request("/no/such/path"), 404),
        Bad("a path upwards", request("/../../etc/passwd", method="GET"), 404),
        Bad("garbage", b"\x00\xff garbage \x01\r\n\r\n", 400),
        Bad("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", 400),
        Bad(
            "a head without end", b"GET / HTTP/1.1\r\nHost: soak\r\nX-Long: " + b"x" * 70_000, 400, may_be_cut_off=True
        ),
        Bad("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
        Bad("two lengths", request(body=b"x").replace(b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n", 1), 400),
    ]


_Case = TypeVar("_Case")

_PATIENCE = 60
"""Seconds after which a connection on which nothing comes must have been closed by the service."""


@dataclass(frozen=True)
class Footprint:
    """What the process of the service takes at a moment.

    Attributes:
        at: Seconds since the soak began.
        memory: Bytes of resident memory.
        files: Open files, connections among them.
        threads: Threads.
        work: Seconds of processor time so far.
        answered: Requests answered so far, by the clients' count.

    """

    at: float
    memory: int
    files: int
    threads: int
    work: float = 0.0
    answered: int = 0


def footprint(process: int, *, at: float, answered: int) -> Footprint:
    """Return what a process of this machine takes now."""
    folder = Path("/proc") / str(process)
    facts = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="ascii").splitlines())
    memory = int(facts["VmRSS"].split()[0]) * 1024
    ticks = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    work = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    files = len(os.listdir(folder / "fd"))  # noqa: PTH208  # names alone
    return Footprint(at, memory, files, int(facts["Threads"]), work, answered)


class Line:
    """A connection to the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def opened(cls, port: int) -> "Line":
        """Return a connection."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = await self.reader.read()
        return int(head[0].split()[1]), body

    async def ask(self, content: bytes) -> tuple[int, bytes]:
        """Return the answer to a request."""
        self.writer.write(content)
        await self.writer.drain()
        return await self.answer()

    async def close(self, *, rudely: bool = False) -> None:
        """Close the connection; rudely with a reset, as where a process is killed."""
        if rudely:
            peer: socket.socket = self.writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()
        with suppress(OSError):  # the service closed it first
            await self.writer.wait_closed()


@dataclass
class Soak:
    """A soak of one service, and what was seen in it.

    Attributes:
        port: Port of the service.
        seconds: How long it lasts.
        process: Process of the service.
        good: Good requests that were answered.
        bad: How often each kind of bad request was sent.
        wrong: What went wrong, in words.
        footprints: What the process took, about ten times a second.

    """

    port: int
    seconds: float
    process: int
    bad: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    good: int = 0

    @property
    def now(self) -> float:
        """Seconds since the soak began."""
        return time.monotonic() - self.began

    async def run(self, *, clients: int, pause: float) -> None:
        """Send requests from so many good clients, with a pause after each answer, and from as many bad ones."""
        good = [self._ask_well(number, pause) for number in range(clients)]
        bad = [self._ask_badly(number, pause) for number in range(clients)]
        await asyncio.gather(*good, *bad, self._send_slowly(), self._leave(), self._send_together(), self._watch())

    async def _watch(self) -> None:
        """Note what the process takes."""
        while self.now < self.seconds:
            self.footprints.append(footprint(self.process, at=self.now, answered=self.good + self.bad.total()))
            await asyncio.sleep(0.1)

    async def _ask_well(self, number: int, pause: float) -> None:
        """Send good requests on one connection; a new one after every hundred, or where the machine stood still.

        A connection that was quiet for 5 seconds is the service's to close.
        """
        cases, count = good_requests(), 0
        while self.now < self.seconds:
            line, sent = await Line.opened(self.port), self.now
            for _ in range(100):
                if self.now >= self.seconds or self.now - sent > 3:
                    break
                case, sent = cases[(7 * number + count) % len(cases)], self.now
                status, body = await line.ask(case.content)
                self._judge(case, status, body)
                count += 1
                await asyncio.sleep(pause)
            await line.close()

    async def _ask_badly(self, number: int, pause: float) -> None:
        """Send bad requests, each on a connection of its own."""
        cases, count = bad_requests(), 5 * number
        while self.now < self.seconds:
            case = cases[count % len(cases)]
            line = await Line.opened(self.port)
            try:
                status, body = await asyncio.wait_for(line.ask(case.content), _PATIENCE)
                if status != case.status:
                    self.wrong.append(f"{case.name}: {status} {body[:200]!r}")
            except (OSError, EOFError, TimeoutError) as error:
                if not (case.may_be_cut_off and isinstance(error, ConnectionResetError)):
                    self.wrong.append(f"{case.name}: {error!r} after {self.now:.0f} s")
            self.bad[case.name] += 1
            await line.close()
            count += 1
            await asyncio.sleep(pause)

    async def _send_slowly(self) -> None:
        """Send good requests in small parts, which are answered."""
        for case in _endless(good_requests()):
            if self.now >= self.seconds:
                return
            line = await Line.opened(self.port)
            step = len(case.content) // 10 + 1
            for start in range(0, len(case.content), step):
                line.writer.write(case.content[start : start + step])
                await line.writer.drain()
                await asyncio.sleep(0.02)
            status, body = await line.answer()
            self._judge(case, status, body)
            await line.close()

    async def _leave(self) -> None:
        """Begin requests and leave, politely or not, at every point."""
        for number, case in enumerate(_endless(good_requests())):
            if self.now >= self.seconds:
                return
            line = await Line.opened(self.port)
            end = (number * 37) % (len(case.content) + 1)
            line.writer.write(case.content[:end])
            await line.writer.drain()
            await line.close(rudely=number % 2 == 0)
            self.bad["leaving in the middle of a request"] += 1
            await asyncio.sleep(0.02)

    async def _send_together(self) -> None:
        """Send several good requests in one piece, and a last one with a bad one behind it."""
        cases = good_requests()
        for number, bad in enumerate(_endless([case for case in bad_requests() if case.status == 422])):
            if self.now >= self.seconds:
                return
            chosen = [cases[(number + step) % len(cases)] for step in range(3)]
            line = await Line.opened(self.port)
            line.writer.write(b"".join(case.content for case in chosen) + bad.content)
            await line.writer.drain()
            for case in chosen:
                status, body = await line.answer()
                self._judge(case, status, body)
            if (await line.answer())[0] != bad.status:
                self.wrong.append(f"{bad.name}, behind good requests")
            self.bad[bad.name] += 1
            await line.close()
            await asyncio.sleep(0.1)

    def _judge(self, case: Good, status: int, body: bytes) -> None:
        """Note an answer to a good request that is not the library's."""
        self.good += 1
        if status != 200:
            self.wrong.append(f"a good request: {status} {body[:200]!r}")
            return
        found = json.loads(body)
        answers = found if case.is_list else [found]
        try:
            for answer, expected in zip(answers, case.expected, strict=True):
                require_equal(answer, expected, fitted()[0].calibration_scores)
        except (AssertionError, ValueError) as error:
            self.wrong.append(f"a wrong verdict: {error}")


def _endless(cases: Sequence[_Case]) -> Iterator[_Case]:
    while True:
        yield from cases


async def lines_open(port: int, contents: Sequence[bytes]) -> list[Line]:
    """Return connections on each of which some bytes were sent, and no more come."""
    lines = [await Line.opened(port) for _ in contents]
    for line, content in zip(lines, contents, strict=True):
        line.writer.write(content)
        await line.writer.drain()
    return lines


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


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [QUICK, pytest.param(LONG, marks=pytest.mark.long)])
def test_a_service_under_load_answers_all_and_grows_in_nothing(tmp_path: Path, tried: Tried, seconds: float) -> None:
    good_requests(), bad_requests()  # made before the clock starts
    with serving(tmp_path, *LIMITS) as served:
        soak = Soak(port_of(served), seconds, served.process.pid or 0)
        asyncio.run(soak.run(clients=4, pause=0.02))
        tried("serving", "good requests to a service under load, each verdict compared with the library's", soak.good)
        tried("serving", "bad requests among them, from garbage to huge bodies", soak.bad.total())
        assert soak.wrong == []
        assert len(soak.bad) == len(bad_requests()) + 1
        require_no_growth(soak.footprints, seconds, most=GROWTH[seconds])
        assert 'status="5' not in httpx.get(f"{served.address}/metrics").text
        stop_among_idle_senders(served)
        log = served.log.read_text(encoding="utf-8")
        assert len(log.splitlines()) == 1, log  # the address alone: no traceback, and no line for each bad request


def stop_among_idle_senders(served: Served) -> None:
    """Fail unless connections on which no request is whole hinder neither good requests nor a stop."""
    whole = good_requests()[0].content
    cut = whole.index(b"\r\n\r\n")

    async def stop() -> None:
        lines = await lines_open(port_of(served), [b"", whole[: cut // 2]] * 100)
        await asyncio.sleep(0.2)
        for case in good_requests()[:10]:
            line = await Line.opened(port_of(served))
            assert (await line.ask(case.content))[0] == 200
            await line.close()
        os.kill(served.process.pid or 0, signal.SIGTERM)
        for line in lines:
            assert await line.reader.read() == b""
            await line.close()

    asyncio.run(stop())
    served.process.join(90)
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

"""A soak of a service: clients that ask well, badly, slowly, in pieces, and not at all, side by side."""

import asyncio
import json
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.reliability.soak_requests import Good, bad_requests, good_requests
from tests.unit.serve.serve_world import fitted, require_equal

__all__ = ["Footprint", "Line", "Soak", "lines_open"]

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
        await asyncio.gather(
            *good, *bad, self._send_slowly(), self._leave(), self._send_together(), self._stall(), self._watch()
        )

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

    async def _stall(self) -> None:
        """Open connections on which nothing comes any more of a body, and see that the service closes them."""
        while self.now < self.seconds - _PATIENCE:
            whole = good_requests()[0].content
            cut = whole.index(b"\r\n\r\n")
            lines = await lines_open(self.port, [whole[: cut + 9]] * 15)
            try:
                async with asyncio.timeout(_PATIENCE):
                    statuses = {(await line.answer())[0] for line in lines}
                    rests = {await line.reader.read() for line in lines}
                if (statuses, rests) != ({408}, {b""}):
                    self.wrong.append(f"senders that stall: {statuses} {rests}")
            except (OSError, EOFError, TimeoutError) as error:
                self.wrong.append(f"senders that stall: {error!r}")
            self.bad["stalling"] += len(lines)
            for line in lines:
                await line.close()

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

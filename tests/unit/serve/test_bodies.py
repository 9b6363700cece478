"""Bodies of requests: senders that stall take nothing from others, memory is bounded, and a stop does not wait."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.serve.body import Bodies
from opnp.serve.limits import Limits
from opnp.serve.refusal import Refusal
from tests.unit.serve.serve_world import fitted, image_bytes, in_service, inputs_of, pictures, service, verdict_json

PNG = {"content-type": "image/png"}


def request_of(receive: Callable[[], Awaitable[dict[str, Any]]], *, length: str | None = None) -> Request:
    headers = [] if length is None else [(b"content-length", length.encode())]
    return Request({"type": "http", "headers": headers, "method": "POST", "path": "/score"}, receive)


def sent(*parts: bytes, more: bool = False, length: str | None = None) -> Request:
    """Return a request whose parts are there at once; with `more`, one that stalls after them."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": more or bool(left)}

    return request_of(receive, length=length)


async def reason(bodies: Bodies, request: Request) -> str:
    """Return the body in words, or status and reason of its refusal."""
    try:
        async with bodies.read(request) as body:
            return f"{len(body)} bytes"
    except Refusal as refusal:
        return f"{refusal.status} {refusal.reason}"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), min_size=1, max_size=12), leaves=st.booleans()
)
def test_after_all_were_read_refused_or_left_nothing_is_held(sizes: list[list[int]], *, leaves: bool) -> None:
    async def run() -> None:
        bodies = Bodies(Limits(max_bytes=100, max_requests=3))

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        requests = [sent(*(b"x" * size for size in parts)) for parts in sizes]
        requests += [request_of(receive)] if leaves else []
        found = await asyncio.gather(*(reason(bodies, request) for request in requests))
        assert bodies.held == 0
        for parts, text in zip(sizes, found, strict=False):
            whole = sum(parts)
            assert text.startswith((f"{whole} bytes" if whole <= 100 else "413", "503")), text
        assert not leaves or found[-1].startswith("400 the sender left")

    asyncio.run(run())


def test_bodies_in_work_count_as_held_and_one_too_many_is_refused() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(max_bytes=100, max_requests=2))
        async with bodies.read(sent(b"x" * 100)), bodies.read(sent(b"x" * 90)):
            assert bodies.held == 190
            assert await reason(bodies, sent(b"x" * 10)) == "10 bytes"
            assert await reason(bodies, sent(b"x" * 11)) == "503 190 bytes of bodies are held: come back"
            # One that is too large is dropped as it comes, and takes no memory for long.
            assert (await reason(bodies, sent(b"x" * 5, b"x" * 100))).startswith("413")
        assert bodies.held == 0

    asyncio.run(run())


def test_a_length_that_says_too_much_is_refused_for_that_though_nothing_comes() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(max_bytes=100, read_seconds=1))
        began = time.monotonic()
        for length in ("401", "9" * 20):
            assert await reason(bodies, sent(more=True, length=length)) == "413 the body has more than 100 bytes"
        assert time.monotonic() - began < 0.5
        # The rest of this one would be read, so that its sender comes to read the answer.
        assert await reason(bodies, sent(b"x" * 9, more=True, length="400")) == "413 the body has more than 100 bytes"
        assert await reason(bodies, sent(b"x" * 9, more=True, length="100")) == (
            "408 the body did not arrive within 1 seconds"
        )
        assert bodies.held == 0

    asyncio.run(run())


def test_when_too_many_senders_stall_the_first_of_them_is_given_up() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(max_requests=1))
        stalled = [asyncio.create_task(reason(bodies, sent(b"x", more=True))) for _ in range(16)]
        await asyncio.sleep(0.01)
        assert await reason(bodies, sent(b"good")) == "4 bytes"
        assert "while many others wait" in await asyncio.wait_for(stalled[0], 1)
        assert not any(task.done() for task in stalled[1:])
        for task in stalled[1:]:
            task.cancel()
        await asyncio.wait(stalled[1:])
        assert bodies.held == 0

    asyncio.run(run())


def test_a_new_sender_is_read_while_the_time_of_all_others_has_just_passed() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(max_requests=1, read_seconds=1))
        stalled = [asyncio.create_task(reason(bodies, sent(b"x", more=True))) for _ in range(16)]
        await asyncio.sleep(0)
        # The loop stands still until this sleep and all timeouts are due: they fire in one turn, the sleep first.
        asyncio.get_running_loop().call_soon(time.sleep, 1.1)
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in stalled)
        assert await reason(bodies, sent(b"good")) == "4 bytes"
        assert set(await asyncio.gather(*stalled)) == {"408 the body did not arrive within 1 seconds"}
        assert bodies.held == 0

    asyncio.run(run())


def test_a_stop_leaves_senders_a_last_second() -> None:
    async def run() -> None:
        bodies = Bodies(Limits())
        stalled = asyncio.create_task(reason(bodies, sent(b"x", more=True)))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        bodies.stop()
        later = asyncio.create_task(reason(bodies, sent(more=True)))
        assert await reason(bodies, sent(b"good")) == "4 bytes"
        for task in (stalled, later):
            assert (await task).startswith("503 the service is stopping")
        assert 0.8 < time.monotonic() - began < 3

    asyncio.run(run())


@pytest.mark.parametrize("senders", [40])
def test_senders_that_stall_keep_nobody_from_an_answer(senders: int) -> None:
    """There are 4 places, and 40 stall: every good request is answered, and at once."""
    images = pictures(6, seed=2)
    wanted = verdict_json(*fitted(), inputs_of(images))
    gate = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"x"
        await gate.wait()

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        stalled = [asyncio.create_task(client.post("/score", content=stalling(), headers=PNG)) for _ in range(senders)]
        await asyncio.sleep(0.05)
        answers = [await client.post("/score", content=image_bytes(image), headers=PNG) for image in images]
        assert not any(task.done() for task in stalled)
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*stalled)} <= {422, 503}
        return answers

    answers = in_service(service(Limits(max_requests=4)), ask)
    for answer, other in zip(answers, wanted, strict=True):
        assert answer.status_code == 200
        assert answer.json() == pytest.approx(other, rel=1e-5)

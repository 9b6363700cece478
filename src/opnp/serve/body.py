"""The bodies of requests, read up to a limit, for a limited time, and in limited memory all together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from opnp.serve.limits import Limits
from opnp.serve.refusal import Refusal

__all__ = ["Bodies"]

_PASSED_OVER = 4
"""Times the limit that is read and dropped of a body that is too large, so that its sender comes to read why."""

_SENDERS_A_PLACE = 16
"""Bodies that may be arriving at once, for each request that may be in work."""

_LAST_SECONDS = 1.0
"""Seconds that bodies have to arrive once the service is stopping."""


@dataclass(eq=False, slots=True)
class _Arriving:
    """A body that is being read.

    Attributes:
        timeout: When it is given up.
        size: Bytes of it that are held.
        refusal: What its sender is told then.

    """

    timeout: asyncio.Timeout
    size: int
    refusal: Refusal


class Bodies:
    """Reads the bodies of a service's requests.

    A sender that is slow takes nothing from others but the bytes that it has sent: it needs no place among the requests
    in work. All bodies together take `max_requests * max_bytes` of memory at most, those in work among them.

    Args:
        limits: How much is taken on.

    """

    def __init__(self, limits: Limits) -> None:
        """Start with none."""
        self._max_bytes = limits.max_bytes
        self._max_held = limits.max_bytes * limits.max_requests
        self._max_senders = _SENDERS_A_PLACE * limits.max_requests
        self._seconds = limits.read_seconds
        self._arriving: dict[_Arriving, None] = {}  # in the order in which they began
        self._held = 0
        self._is_stopping = False

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return self._held

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Hold the whole body of a request while it is in work.

        Args:
            request: The request.

        Raises:
            Refusal: With 413 if there is more than the limit, 408 if it takes longer than its time or more senders come
                than are waited for, 415 if it is compressed, 400 if the sender leaves, 503 if there is no memory for
                it or the service is stopping.

        """
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            raise Refusal(415, "a body with Content-Encoding is not read: send it as it is")
        text = request.headers.get("content-length", "")
        declared = int(text[:20]) if text.isdecimal() and text.isascii() else 0
        if declared > _PASSED_OVER * self._max_bytes:  # it would not be read to its end
            raise self._too_large()
        size = 0
        try:
            body = await self._arrived(request, is_too_large=declared > self._max_bytes)
            size = len(body)
            yield body
        finally:
            self._held -= size

    def stop(self) -> None:
        """Give the bodies that are arriving a last second, and those that begin from now on."""
        self._is_stopping = True
        for arriving in self._arriving:
            self._hurry(arriving)

    async def _arrived(self, request: Request, *, is_too_large: bool) -> bytes:
        """Return the body; its bytes count as held from now on."""
        if len(self._arriving) >= self._max_senders:
            self._give_up_one()
        late = Refusal(408, f"the body did not arrive within {self._seconds:g} seconds")
        late = self._too_large() if is_too_large else late
        arriving = _Arriving(asyncio.timeout(self._seconds), 0, late)
        try:
            async with arriving.timeout:
                self._arriving[arriving] = None
                if self._is_stopping:
                    self._hurry(arriving)
                body = await self._joined(request, arriving, is_too_large=is_too_large)
        except TimeoutError:
            self._held -= arriving.size
            raise arriving.refusal from None
        except BaseException:
            self._held -= arriving.size
            raise
        finally:
            self._arriving.pop(arriving, None)
        return body

    async def _joined(self, request: Request, arriving: _Arriving, *, is_too_large: bool) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in _parts(request):
            size += len(part)
            is_too_large = is_too_large or size > self._max_bytes
            if is_too_large:
                parts.clear()
                self._hold(arriving, 0)
            else:
                parts.append(part)
                self._hold(arriving, size)
            if size > _PASSED_OVER * self._max_bytes:
                break
        if is_too_large:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than {self._max_bytes} bytes")

    def _hold(self, arriving: _Arriving, size: int) -> None:
        """Count the bytes of a body."""
        held = self._held + size - arriving.size
        if held > self._max_held:
            raise Refusal(503, f"{self._held} bytes of bodies are held: come back", headers={"Retry-After": "1"})
        self._held, arriving.size = held, size

    def _give_up_one(self) -> None:
        """Let the first wait no longer, for others want to be read; those whose time has just passed leave anyway."""
        arriving = next((each for each in self._arriving if not each.timeout.expired()), None)
        if arriving is None:
            return
        del self._arriving[arriving]
        arriving.refusal = Refusal(408, "the body did not arrive while many others wait: send it again, and faster")
        arriving.timeout.reschedule(asyncio.get_running_loop().time())

    def _hurry(self, arriving: _Arriving) -> None:
        last = asyncio.get_running_loop().time() + _LAST_SECONDS
        until = arriving.timeout.when()
        if until is None or last < until:
            arriving.refusal = Refusal(503, "the service is stopping, and the body had not arrived")
            arriving.timeout.reschedule(last)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    is_complete = False
    while not is_complete:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the sender left before the body was complete")
        yield message.get("body", b"")
        is_complete = not message.get("more_body", False)

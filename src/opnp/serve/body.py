"""The body of a request, read up to a limit and for a limited time."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from opnp.serve.refusal import Refusal

__all__ = ["body_of"]

_PASSED_OVER = 4
"""Times the limit that is read and dropped of a body that is too large, so that its sender comes to read why."""


async def body_of(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """Return the body of a request; no more than `max_bytes` of it are ever held.

    Args:
        request: The request.
        max_bytes: Bytes it may have.
        seconds: Time it may take to arrive.

    Raises:
        Refusal: With 413 if there is more, 408 if it takes longer, 415 if it is compressed, 400 if the sender leaves.

    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise Refusal(415, "a body with Content-Encoding is not read: send it as it is")
    declared = request.headers.get("content-length", "")
    is_too_large = declared.isdecimal() and declared.isascii() and int(declared[:20]) > max_bytes
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, max_bytes=max_bytes, is_too_large=is_too_large)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {seconds:g} seconds") from None


async def _read(request: Request, *, max_bytes: int, is_too_large: bool) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in _parts(request):
        size += len(part)
        is_too_large = is_too_large or size > max_bytes
        if is_too_large:
            parts.clear()
        else:
            parts.append(part)
        if size > _PASSED_OVER * max_bytes:
            break
    if is_too_large:
        raise Refusal(413, f"the body has more than {max_bytes} bytes")
    return b"".join(parts)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    is_complete = False
    while not is_complete:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the sender left before the body was complete")
        yield message.get("body", b"")
        is_complete = not message.get("more_body", False)

"""What stands round every request: counted and timed, guarded by headers, and no exception told to the sender."""

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from fastapi.responses import JSONResponse

__all__ = ["Observing"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_LOG = logging.getLogger("opnp.serve")
_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class _Count(Protocol):
    """What counts requests."""

    def __call__(self, path: str, *, status: int, seconds: float) -> object: ...


class Observing:
    """Wraps an application of ASGI.

    Args:
        app: The application.
        count: Called for each request that was answered.
        paths: Paths that are counted by name; all others are ``other``, so that no sender makes up counters.

    """

    def __init__(self, app: _App, *, count: _Count, paths: Sequence[str]) -> None:
        """Keep the arguments."""
        self._app = app
        self._count = count
        self._paths = frozenset(paths)

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, with the headers that all answers have."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message["headers"]}
                added = [pair for pair in _HEADERS.items() if pair[0] not in own]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            _LOG.exception("a request to %r was not answered", scope["path"])
            if status:  # half an answer is on its way
                raise
            answer = JSONResponse({"detail": "the service failed on this request; its log says why"}, status_code=500)
            await answer(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._count(path, status=status, seconds=time.perf_counter() - started)

"""HEAD where GET is answered: the same status and headers, without the content."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["HeadRequests"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class HeadRequests:
    """Wraps an application of ASGI that knows GET alone.

    Args:
        app: The application.

    References:
        RFC 9110, section 9.3.2.

    """

    def __init__(self, app: _App) -> None:
        """Keep the application."""
        self._app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def sending(message: _Message) -> None:
            is_content = message["type"] == "http.response.body"
            await send({**message, "body": b""} if is_content else message)

        await self._app({**scope, "method": "GET"}, receive, sending)

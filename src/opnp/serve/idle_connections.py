"""Connections on which no request comes, or only a part of its head: closed after a while, so that they do not pile up.

uvicorn closes a connection that is quiet after an answer; one that never sends a whole head it keeps for ever.
"""

from collections.abc import Iterable
from typing import Protocol

__all__ = ["Connection", "IdleConnections"]


class Connection(Protocol):
    """What is used of a connection of uvicorn; `cycle` is its last request, None before the first."""

    cycle: object

    def shutdown(self) -> None:
        """Close the connection if no request is in work on it."""


class IdleConnections:
    """Closes connections that had no request in work for some time.

    Args:
        seconds: The time.

    """

    def __init__(self, seconds: float) -> None:
        """Start with none."""
        self._seconds = seconds
        self._since: dict[Connection, tuple[object, float]] = {}

    def close(self, connections: Iterable[Connection], *, now: float) -> None:
        """Close those that have been without a request since long; called again and again.

        Args:
            connections: All that are open.
            now: The time, in seconds.

        """
        before, self._since = self._since, {}
        for connection in list(connections):
            if not hasattr(connection, "cycle"):  # one that became a web socket
                continue
            request = connection.cycle
            if request is not None and not getattr(request, "response_complete", False):
                continue
            last, since = before.get(connection, (request, now))
            since = since if last is request else now
            self._since[connection] = request, since
            if now - since >= self._seconds:
                connection.shutdown()

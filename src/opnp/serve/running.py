"""A service on a port of this machine, until it is told to stop; what it has begun it answers."""

import contextlib
import os
import signal
import socket  # noqa: TID251  # the service listens
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from opnp.errors import OptionError
from opnp.serve.app import require_serving
from opnp.serve.idle_connections import Connection, IdleConnections

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

__all__ = ["listening_socket", "run_service"]

_BACKLOG = 2048
_STOPPING_SECONDS = 30
"""Seconds that requests in work have to be answered after the service was told to stop."""

_IDLE_SECONDS = 15
"""Seconds after which a connection is closed on which no whole head of a request has come."""


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Name or address of this machine.
        port: Number of the port; 0 for one that is free.

    Raises:
        OptionError: If it cannot be had.

    Example:
        >>> with listening_socket("127.0.0.1", 0) as found:
        ...     found.getsockname()[1] > 0
        True

    """
    if not 0 <= port < 1 << 16:
        raise OptionError(f"`--port` must lie in 0 to 65535, got {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio sends small answers at once; else each waits 40 ms for an acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"The service cannot listen at `--host` {host} and `--port` {port} ({reason}): name an address of this "
            f"machine, and a port that is free; 0 takes any.",
        ) from error
    return listening


def run_service(app: "FastAPI", listening: socket.socket, *, started: Callable[[str], object]) -> None:
    """Answer requests until SIGTERM or SIGINT comes; then answer those that are in work, and return.

    Args:
        app: The application, of `serve_app`.
        listening: Where requests come from; it is closed afterwards.
        started: Called with the address once requests are answered.

    Raises:
        MissingExtraError: If uvicorn is not installed.

    """
    require_serving()
    from uvicorn import Config, Server  # noqa: PLC0415  # of an extra

    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    idle = IdleConnections(_IDLE_SECONDS)

    class Told(Server):
        """A server that says when it has started, and keeps neither idle connections nor senders that stall."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started(address)

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once a second
                idle.close(cast("Iterable[Connection]", self.server_state.connections), now=time.monotonic())
            return await super().on_tick(counter)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.stop_reading()
            await super().shutdown(sockets)

    config = Config(
        app,
        lifespan="on",
        log_config=None,  # logging is the caller's affair; errors go to standard error without it
        log_level="error",  # else each request that is no HTTP writes a line, as many as a sender likes
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOPPING_SECONDS,
    )
    server = Told(config)
    with listening, _stopped_by_signals(server):
        server.run(sockets=[listening])


@contextlib.contextmanager
def _stopped_by_signals(server: "Server") -> Iterator[None]:
    """Let signals stop the server and nothing else: uvicorn raises them again once it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The service: as an application of FastAPI, and on a port of this machine until it is told to stop."""

import contextlib
import os
import signal
import socket  # noqa: TID251  # the service listens
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from opnp.data import Transform
from opnp.detector import OPNP
from opnp.errors import OptionError, require_installed
from opnp.serve.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

__all__ = ["listening_socket", "require_serving", "run_service", "serve_app"]

_BACKLOG = 2048
_IDLE_SECONDS = 15
"""Seconds after which a connection is closed on which no request follows an answer."""

_STOPPING_SECONDS = 30
"""Seconds that requests in work have to be answered after the service was told to stop."""


def serve_app(
    detector: OPNP,
    model: nn.Module,
    transform: Transform,
    *,
    class_names: Sequence[str] | None = None,
    is_explained: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    log_scores: str | os.PathLike[str] | None = None,
) -> "FastAPI":
    """Return the service of a detector and its model, for any server of ASGI.

    ``POST /score`` takes the bytes of a picture, or JSON: an array of numbers of the shape of one input or a list of
    such, a text as ``{"text": "..."}`` or a list of texts. It answers class, confidence, score, p-value and verdict:
    what `detector.verdict` says of the same input, with the original head's probability of the class. ``GET /`` is a
    page to try it, ``/healthz`` and ``/metrics`` are for machines.

    The model is run once here, so that one that does not fit is refused now. Afterwards the service alone runs it, on
    one thread; between batches it is as it was.

    Args:
        detector: Fitted and calibrated; it is tied to the model.
        model: The model that it was fitted on.
        transform: What makes the model's inputs, as `opnp.adapters.model_from_name` gives it.
        class_names: Names of the classes, for the answers; those of the model where it has some and none are given.
        is_explained: Whether answers give each fused score's own p-value and its share of the score, as ``members``.
        limits: How much is taken on.
        log_scores: File ending in ``.csv``, to which class, score, p-value and verdict of each input are appended, for
            ``opnp monitor``; its folder must exist.

    Raises:
        DataFileError: If `log_scores` has another ending.
        MissingExtraError: If a package of the extra `serve` is not installed.
        NotFittedError: If nothing was fitted.
        NotCalibratedError: If the detector is not calibrated.
        HeadMismatchError: If no layer of the model is the head that the detector was fitted on.
        OptionError: If there are not as many names as classes, or `log_scores` is another file.
        ModelRunError: If the model fails on an input of the transform.

    Example:
        >>> import torch
        >>> from opnp import OPNP, Ratios
        >>> from opnp.data import Preprocessing
        >>> model, inputs = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(100, 3, 4, 4)
        >>> detector = OPNP(ratios=Ratios(w_min=0.1)).fit(model, [inputs]).calibrate([inputs])
        >>> app = serve_app(detector, model, Preprocessing(size=4, resize=4, mean=(0.5,) * 3, std=(0.25,) * 3))
        >>> sorted({route.path for route in app.routes if route.path != "/openapi.json"})
        ['/', '/healthz', '/metrics', '/score']

    """
    require_serving()
    from opnp.serve.engine import Engine  # noqa: PLC0415  # with its packages, which are of an extra
    from opnp.serve.metrics import ScoreLog  # noqa: PLC0415  # as above
    from opnp.serve.routes import application  # noqa: PLC0415  # as above

    log = None if log_scores is None else ScoreLog(log_scores)

    engine = Engine.opened(detector, model, transform, class_names=class_names, is_explained=is_explained)
    return application(engine, limits=limits, log=log)


def require_serving() -> None:
    """Raise if what the service needs is not installed.

    Raises:
        MissingExtraError: If a package is missing; the message names the command that installs all.

    """
    require_installed("The service needs", "fastapi", "prometheus_client", "PIL", "uvicorn", extra="serve")


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
        started: Called with the address just before the first request is answered; those that come earlier wait.

    """
    from uvicorn import Config, Server  # noqa: PLC0415  # of an extra

    host, port = listening.getsockname()[:2]
    config = Config(
        app,
        lifespan="on",
        log_config=None,  # logging is the caller's affair; errors go to standard error without it
        log_level="error",  # else each request that is no HTTP writes a line, as many as a sender likes
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_STOPPING_SECONDS,
    )
    server = Server(config)
    with listening, _stopped_by_signals(server):
        started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
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

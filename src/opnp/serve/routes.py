"""The routes of the service, what each answers, and what stands round every request."""

import asyncio
import base64
import hashlib
import html
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect
from torch import Tensor

from opnp import __version__
from opnp.data import ModelInputs, SampleKind
from opnp.data.images import image_formats
from opnp.errors import NonFiniteError
from opnp.serve.batching import Batcher
from opnp.serve.content import JSON_TYPE, BodyReader
from opnp.serve.engine import Answer, Engine
from opnp.serve.limits import Limits, Refusal
from opnp.serve.metrics import METRICS_TYPE, Metrics, ScoreLog

__all__ = ["application"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_LOG = logging.getLogger("opnp.serve")
_PATHS = frozenset({"/", "/healthz", "/metrics", "/score"})
"""Paths that are counted by name; all others are ``other``, so that no sender makes up counters."""

_READ = ["GET", "HEAD"]
_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"description": "The body is too large."},
    415: {"description": "The content type is not read."},
    422: {"description": "Nothing can be made of the body; `detail` says why."},
    503: {"description": "Too many requests are in work: come back."},
}


def application(engine: Engine, *, limits: Limits, log: ScoreLog | None = None) -> FastAPI:
    """Return the application of an engine; the model is run once before.

    Raises:
        ModelRunError: If the model fails.
        OpnpError: If the transform or the detector refuses what it is tried on.

    """
    kind = engine.transform.kind
    made = engine.tried(_first_sample(kind))
    shape = tuple(made.shape) if isinstance(made, Tensor) else None
    reader = BodyReader(engine.transform, shape, max_pixels=limits.max_pixels, max_inputs=limits.max_inputs)
    metrics = Metrics(lambda: batcher.requests)
    batcher: Batcher[ModelInputs, Answer] = Batcher(
        engine.answers,
        max_batch=limits.max_batch,
        max_wait=limits.max_wait,
        max_requests=limits.max_requests,
        observe=metrics.count_batch,
    )
    # Tokenizers of transformers are not made for several threads.
    threads = ThreadPoolExecutor(limits.threads if kind == "image" else 1, thread_name_prefix="opnp-inputs")

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="opnp",
        version=__version__,
        lifespan=running,
        docs_url=None,  # both take scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(Refusal, _refused)

    @app.post(
        "/score",
        openapi_extra={"requestBody": _described_body(shape)},
        responses={status: {"description": text} for status, text in _REFUSALS.items()},
    )
    async def score(request: Request) -> Response:
        """Return class, confidence, score, p-value and verdict of one input, or a list of those."""
        batcher.require_place()  # said at once, and again once the body is there
        body = await _body(request, limits)
        with batcher.request() as place:
            content_type = request.headers.get("content-type", "")
            prepared = await asyncio.get_running_loop().run_in_executor(threads, reader.prepared, body, content_type)
            try:
                answers = await place.outputs(prepared.inputs)
            except NonFiniteError as error:
                raise Refusal(422, f"the model's values for this input are not finite: {error}") from error
        metrics.count_answers(answers)
        if log is not None:
            try:
                log.write(answers)
            except OSError:  # such as a full disk; who asked gets the verdict all the same
                _LOG.exception("verdicts were not added to the file of scores")
        found = [answer.to_json() for answer in answers]
        return JSONResponse(found if prepared.is_list else found[0])

    @app.api_route("/healthz", methods=_READ, include_in_schema=False)
    async def healthz() -> Response:
        """Return whether requests are answered."""
        status = "ready" if batcher.is_ready else "stopping"
        return JSONResponse({"status": status}, status_code=200 if batcher.is_ready else 503)

    @app.api_route("/metrics", methods=_READ, include_in_schema=False)
    async def metrics_text() -> Response:
        """Return the counters in the text format of Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    facts = {"kind": kind, "keep": engine.detector.keep, "maxBytes": limits.max_bytes, "formats": image_formats()}
    text = _page_text(kind, facts)

    @app.api_route("/", methods=_READ, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": _page_policy()})

    app.add_middleware(_Observing, metrics=metrics)
    return app


async def _body(request: Request, limits: Limits) -> bytes:
    """Return the whole body of a request.

    Raises:
        Refusal: With 413 if there is more than the limit, 415 if it is compressed, 400 if the sender leaves.

    """
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise Refusal(415, "a body with Content-Encoding is not read: send it as it is")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limits.max_bytes:
                raise Refusal(413, f"the body has more than {limits.max_bytes} bytes")
    except ClientDisconnect:
        raise Refusal(400, "the sender left before the body was complete") from None
    return bytes(body)


async def _refused(_request: Request, refusal: Exception) -> Response:
    """Return the answer to a request that is refused."""
    if not isinstance(refusal, Refusal):
        raise refusal
    return JSONResponse({"detail": refusal.reason}, status_code=refusal.status, headers=refusal.headers)


def _first_sample(kind: SampleKind) -> object:
    """Return a sample to try a model on: a grey image, or a word."""
    if kind == "text":
        return "text"
    from PIL import Image  # noqa: PLC0415  # of an extra

    return Image.new("RGB", (64, 64), (127, 127, 127))


def _described_body(shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the body of /score in the words of OpenAPI."""
    if shape is None:
        text: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        schema = {"oneOf": [text, {"type": "array", "items": {"type": "string"}}]}
        return {"required": True, "content": {JSON_TYPE: {"schema": schema}}}
    array: dict[str, Any] = {"type": "number"}
    for length in reversed(shape):
        array = {"type": "array", "items": array, "minItems": length, "maxItems": length}
    image = {"schema": {"type": "string", "format": "binary"}}
    numbers = {"schema": {"oneOf": [array, {"type": "array", "items": array}]}}
    return {"required": True, "content": {"image/*": image, JSON_TYPE: numbers}}


def _page_text(kind: SampleKind, facts: Mapping[str, object]) -> str:
    """Return the page to try a service: one text without anything from elsewhere; its script reads the facts."""
    page = _part("page.html").replace("{{ style }}", _part("page.css")).replace("{{ script }}", _part("page.js"))
    return page.replace("{{ kind }}", kind).replace("{{ facts }}", html.escape(json.dumps(facts)))


@cache
def _page_policy() -> str:
    """Return the content security policy of the page: its own script and style, and requests to this service alone."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(_part('page.js'))}'",
            f"style-src '{_digest(_part('page.css'))}'",
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


@cache
def _part(name: str) -> str:
    return files("opnp.serve").joinpath("page", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


class _Observing:
    """Counts and times every request, adds headers to every answer, and tells no exception to the sender."""

    def __init__(self, app: _App, *, metrics: Metrics) -> None:
        """Keep the arguments."""
        self._app = app
        self._metrics = metrics

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
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.count_request(path, status=status, seconds=time.perf_counter() - started)

"""The routes of the service, and what each answers."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor

from opnp import __version__
from opnp.data import ModelInputs, SampleKind
from opnp.errors import NonFiniteError
from opnp.serve.batching import Batcher
from opnp.serve.body import Bodies
from opnp.serve.content import IMAGE_TYPES, JSON_TYPE, BodyReader, Prepared
from opnp.serve.engine import Answer, Engine
from opnp.serve.head_requests import HeadRequests
from opnp.serve.limits import Limits
from opnp.serve.metrics import METRICS_TYPE, Metrics
from opnp.serve.observing import Observing
from opnp.serve.page_text import page_policy, page_text
from opnp.serve.refusal import Refusal

__all__ = ["application"]

_REFUSALS = {
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not read.",
    422: "Nothing can be made of the body; `detail` says why.",
    503: "Too many requests are in work: come back.",
}


def application(engine: Engine, *, limits: Limits) -> FastAPI:
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
    bodies = Bodies(limits)
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

    @app.post("/score", openapi_extra={"requestBody": _described_body(shape)}, responses=_described_refusals())
    async def score(request: Request) -> Response:
        """Return class, confidence, score, p-value and verdict of one input, or a list of those."""
        batcher.require_place()  # said at once, and again once the body is there
        async with bodies.read(request) as body:
            with batcher.request() as place:
                content_type = request.headers.get("content-type", "")
                prepared = await _in_thread(threads, reader, body, content_type)
                try:
                    answers = await place.outputs(prepared.inputs)
                except NonFiniteError as error:
                    raise Refusal(422, f"the model's values for this input are not finite: {error}") from error
        metrics.count_answers(answers)
        found = [answer.to_json() for answer in answers]
        return JSONResponse(found if prepared.is_list else found[0])

    @app.get("/healthz")
    async def healthz() -> Response:
        """Return whether requests are answered."""
        status = "ready" if batcher.is_ready else "stopping"
        return JSONResponse({"status": status}, status_code=200 if batcher.is_ready else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics_text() -> Response:
        """Return the counters in the text format of Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    text = page_text(kind=kind, keep=engine.detector.keep, max_bytes=limits.max_bytes)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": page_policy()})

    app.state.stop_reading = bodies.stop  # for who stops the server
    app.add_middleware(HeadRequests)
    app.add_middleware(Observing, count=metrics.count_request, paths=("/", "/healthz", "/metrics", "/score"))
    return app


async def _in_thread(threads: ThreadPoolExecutor, reader: BodyReader, body: bytes, content_type: str) -> Prepared:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, reader.prepared, body, content_type)


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
    return {"required": True, "content": dict.fromkeys(IMAGE_TYPES, image) | {JSON_TYPE: numbers}}


def _described_refusals() -> dict[int | str, dict[str, Any]]:
    return {status: {"description": text} for status, text in _REFUSALS.items()}

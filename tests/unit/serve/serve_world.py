"""A small service in this process: detector, model, images, and a client without a network."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from io import BytesIO
from typing import Any, TypeVar

import httpx
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.data import Preprocessing
from opnp.serve.app import serve_app
from opnp.serve.limits import Limits
from tests.unit.bench.image_world import INPUTS, class_images, tiny_model

__all__ = [
    "answered",
    "fitted",
    "image_bytes",
    "in_service",
    "inputs_of",
    "pictures",
    "require_equal",
    "service",
    "verdict_json",
]

_Result = TypeVar("_Result")
_TOLERANCE = 1e-5
"""Difference of scores S of one input between batches of other sizes, in units of 1 + |S|."""


def pictures(rows: int, *, seed: int) -> list[Image.Image]:
    """Return images of 8 x 8."""
    return [Image.fromarray(pixels.numpy()) for pixels in class_images(rows, seed=seed)[0]]


def inputs_of(images: list[Image.Image], transform: Preprocessing = INPUTS) -> Tensor:
    """Return images as the model takes them."""
    return transform.batch([transform(image) for image in images])


def image_bytes(image: Image.Image, form: str = "PNG") -> bytes:
    """Return an image as a file."""
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


@cache
def fitted(*, is_fusion: bool = True) -> tuple[OPNP, nn.Module]:
    """Return a calibrated detector, a fusion or one of the paper's method, and its model in training mode."""
    model = tiny_model()
    detector = OPNP(ratios=None if is_fusion else Ratios(w_min=0.1))
    detector.fit(model, [inputs_of(pictures(300, seed=0))])
    return detector.calibrate([inputs_of(pictures(199, seed=1))]), model


def service(limits: Limits | None = None, *, is_fusion: bool = True, **options: Any) -> FastAPI:
    """Return a service of `fitted`."""
    detector, model = fitted(is_fusion=is_fusion)
    return serve_app(detector, model, INPUTS, limits=Limits() if limits is None else limits, **options)


def in_service(app: FastAPI, work: Callable[[httpx.AsyncClient], Awaitable[_Result]]) -> _Result:
    """Return what comes of work with a client of a service that runs meanwhile."""

    async def run() -> _Result:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service", timeout=120) as client,
        ):
            return await work(client)

    return asyncio.run(run())


def answered(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the answer to one request."""

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, **options)

    return in_service(app, ask)


def verdict_json(detector: OPNP, model: nn.Module, inputs: Tensor) -> list[dict[str, Any]]:
    """Return what the service should answer, by the public methods of the library, input by input."""
    found = []
    was_training = {module: module.training for module in model.modules()}
    for each in inputs:
        verdict = detector.verdict(each[None])
        model.eval()
        with torch.no_grad():
            confidence = model(each[None]).double().softmax(1).max()
        for module, mode in was_training.items():
            module.training = mode
        found.append(
            {
                "class": int(verdict.predicted_class),
                "confidence": float(confidence),
                "score": float(verdict.score),
                "p_value": float(verdict.p_value),
                "is_ood": bool(verdict.is_ood),
            }
        )
    return found


def require_equal(answer: dict[str, Any], expected: dict[str, Any], calibration: torch.Tensor) -> None:
    """Fail unless an answer is what the library says of the input, but for the last digits of float32."""
    assert answer["class"] == expected["class"]
    assert answer["confidence"] == pytest.approx(expected["confidence"], rel=_TOLERANCE)
    assert answer["score"] == pytest.approx(expected["score"], abs=_TOLERANCE * (1 + abs(expected["score"])))
    if not _is_tied(expected["score"], calibration):
        assert answer["p_value"] == expected["p_value"]
        assert answer["is_ood"] == expected["is_ood"]


def _is_tied(score: float, calibration: torch.Tensor) -> bool:
    """Return whether a score is as close to a calibration score as scores of other batches are to it."""
    return bool(((calibration - score).abs() <= 2 * _TOLERANCE * (1 + abs(score))).any())

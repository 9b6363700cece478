"""The service as an application of FastAPI: opened objects in, answers over HTTP out."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import nn

from opnp.data import Transform
from opnp.detector import OPNP
from opnp.errors import MissingExtraError
from opnp.serve.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["require_serving", "serve_app"]

_PACKAGES = {"fastapi": "fastapi", "prometheus_client": "prometheus-client", "PIL": "pillow", "uvicorn": "uvicorn"}
"""What the service needs: modules, and the packages that they come from."""


def serve_app(
    detector: OPNP,
    model: nn.Module,
    transform: Transform,
    *,
    head_name: str | None = None,
    class_names: Sequence[str] | None = None,
    is_explained: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> "FastAPI":
    """Return the service of a detector and its model, for any server of ASGI.

    ``POST /score`` takes the bytes of a picture, or JSON: an array of numbers of the shape of one input or a list of
    such, a text as ``{"text": "..."}`` or a list of texts. It answers class, confidence, score, p-value and verdict:
    what `detector.verdict` says of the same input, with the original head's probability of the class. ``GET /`` is a
    page to try it, ``/healthz`` and ``/metrics`` are for machines.

    The model is run once here, so that one that does not fit is refused now. Afterwards the service alone runs it, on
    one thread; between batches it is as it was.

    Args:
        detector: Fitted and calibrated.
        model: The model that it was fitted on.
        transform: What makes the model's inputs, as `opnp.adapters.model_from_name` gives it.
        head_name: Dotted name of the head, preferred where several layers of the model are equal.
        class_names: Names of the classes, for the answers.
        is_explained: Whether answers give each fused score's own p-value and its share of the score, as ``members``.
        limits: How much is taken on.

    Raises:
        MissingExtraError: If a package of the extra `serve` is not installed.
        NotFittedError: If nothing was fitted.
        NotCalibratedError: If the detector is not calibrated.
        HeadMismatchError: If no layer of the model is the head that the detector was fitted on.
        OptionError: If there are not as many names as classes.
        ModelRunError: If the model fails on an input of the transform.

    Example:
        >>> import torch
        >>> from opnp import OPNP, Ratios
        >>> from opnp.data import Preprocessing
        >>> model, inputs = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(100, 3, 4, 4)
        >>> detector = OPNP(ratios=Ratios(w_min=0.1)).fit(model, [inputs]).calibrate([inputs])
        >>> app = serve_app(detector, model, Preprocessing(size=4, resize=4, mean=(0.5,) * 3, std=(0.25,) * 3))
        >>> sorted(route.path for route in app.routes if route.path != "/openapi.json")
        ['/', '/healthz', '/metrics', '/score']

    """
    require_serving()
    from opnp.serve.engine import Engine  # noqa: PLC0415  # with its packages, which are of an extra
    from opnp.serve.routes import application  # noqa: PLC0415  # as above

    engine = Engine.opened(
        detector, model, transform, head_name=head_name, class_names=class_names, is_explained=is_explained
    )
    return application(engine, limits=limits)


def require_serving() -> None:
    """Raise if what the service needs is not installed.

    Raises:
        MissingExtraError: If a package is missing; the message names the command that installs all.

    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"The service needs {', '.join(missing)}, not installed here: `pip install 'opnp[serve]'`.",
        )

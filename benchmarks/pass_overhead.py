"""What fitting and scoring add to the forward pass of the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import opnp.model.search
import opnp.model.stream
from benchmarks.measuring import Outcome, seconds
from benchmarks.models import cifar_densenet, large_head
from opnp import OPNP, Ratios
from opnp.detector.fit_pass import FitSum
from opnp.model import Inputs, head_stream, run_model

__all__ = ["pass_overhead"]

_BATCH = 64
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(eq=False, slots=True)
class _Forward:
    """Time spent in the forward pass so far."""

    seconds: float = 0.0


@contextmanager
def _timed_forward() -> Iterator[_Forward]:
    """Take the time of every forward pass that the library makes meanwhile, wherever it makes it."""
    spent, places = _Forward(), (opnp.model.stream, opnp.model.search)
    plain = run_model

    def timed(model: nn.Module, inputs: Inputs, *, device: torch.device | None) -> object:
        answers: list[object] = []
        spent.seconds += seconds(lambda: answers.append(plain(model, inputs, device=device)))
        return answers[0]

    try:
        for place in places:
            place.run_model = timed  # type: ignore[attr-defined]  # a module's name, for the time of a measurement
        yield spent
    finally:
        for place in places:
            place.run_model = plain  # type: ignore[attr-defined]  # as above


def _share(step: Callable[[], object]) -> tuple[float, float]:
    """Return the time that a step spends outside and inside the forward pass."""
    with _timed_forward() as forward:
        whole = seconds(step)
    return whole - forward.seconds, forward.seconds


def pass_overhead(*, batches: int, repeats: int) -> Iterator[Outcome]:
    """Yield the overhead of `fit` and of `score` on a DenseNet, and that of `fit` before a large head."""
    model, images = cifar_densenet(_BATCH)
    model, images = model.to(_DEVICE), images.to(_DEVICE)
    loader = [images] * batches
    for name, detector in {"fixed ratios": OPNP(ratios=Ratios(w_min=0.3)), "OPNP()": OPNP()}.items():
        held = _quiet_fit(detector, model, loader)
        values = [_relative(held) for _ in range(repeats)]
        yield Outcome(f"fit beside the forward of a DenseNet, {name}", tuple(values), 0.01)
    fitted = OPNP(ratios=Ratios(w_min=0.3)).fit(model, loader[:1])
    scores = [_relative(lambda: [fitted.score(batch) for batch in loader]) for _ in range(repeats)]
    yield Outcome("score beside the forward of a DenseNet", tuple(scores), 0.01)
    yield _beside_products(repeats=repeats, batches=8 * batches)


def _relative(step: Callable[[], object]) -> float:
    outside, inside = _share(step)
    return outside / inside


def _quiet_fit(detector: OPNP, model: nn.Module, loader: list[Tensor]) -> Callable[[], object]:
    """Return a step that takes the sums; what is decomposed after the pass is not part of it."""

    def step() -> None:
        with head_stream(model, loader) as stream:
            head = stream.head
            bias = None if head.bias is None else head.bias.detach()
            pairs = ((features, logits) for features, logits, _ in stream.batches)
            FitSum.of(pairs, head.weight.detach(), bias, detector.settings)

    return step


def _beside_products(*, repeats: int, batches: int) -> Outcome:
    """Return what `fit` takes outside the forward against its own matrix products, for a large head."""
    model, inputs = large_head(_BATCH)
    model, inputs = model.to(_DEVICE), inputs.to(_DEVICE)
    step = _quiet_fit(OPNP(ratios=Ratios()), model, [inputs] * batches)
    weight = torch.rand(1000, 2048, device=_DEVICE)
    rows = torch.rand(_BATCH * batches, weight.shape[1], device=_DEVICE)
    probabilities = torch.rand(_BATCH * batches, weight.shape[0], device=_DEVICE)

    def products() -> None:
        for features, shares in zip(rows.split(_BATCH), probabilities.split(_BATCH), strict=True):
            shares.T @ features
            shares @ weight

    values = []
    products()
    for _ in range(repeats):
        outside, _inside = _share(step)
        values.append(outside / seconds(products))
    return Outcome("fit beside its matrix products, C 1000, D 2048, batches of 64", tuple(values), 3.0)

"""The pruned head against DICE as pytorch-ood computes it, on the same features: time and memory."""

from collections.abc import Callable, Iterator

import torch
from pytorch_ood.detector import DICE
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import Outcome, ratios
from opnp import OPNP, Ratios

__all__ = ["against_dice"]

_CLASSES, _FEATURES, _BATCH = 1000, 2048, 256


def against_dice(*, repeats: int) -> Iterator[Outcome]:
    """Yield how much faster the pruned head scores, and how much less memory it allocates."""
    generator = torch.Generator().manual_seed(0)
    training = torch.rand(1024, _FEATURES, generator=generator)
    batch = torch.rand(_BATCH, _FEATURES, generator=generator)
    weight = torch.randn(_CLASSES, _FEATURES, generator=generator) * 0.05
    bias = torch.zeros(_CLASSES)
    dice = DICE(nn.Identity(), w=weight, b=bias, p=0.7)
    dice.fit_features(training, torch.zeros(len(training), dtype=torch.int64))
    detector = OPNP(ratios=Ratios(w_min=0.7), shaping=None).fit_features(training, weight=weight, bias=bias)

    def rival() -> None:
        with torch.no_grad():
            dice.predict_features(batch)

    def own() -> None:
        detector.score_features(batch)

    shape = f"C {_CLASSES}, D {_FEATURES}, batch {_BATCH}"
    yield Outcome(
        f"DICE against the pruned head, {shape}: time", ratios(rival, own, repeats=repeats), 20, kind="at least"
    )
    memory = _largest(rival) / _largest(own)
    yield Outcome(f"DICE against the pruned head, {shape}: largest allocation", (memory,), 20, kind="at least")


def _largest(step: Callable[[], None]) -> int:
    """Return the most bytes that a single operation of a step allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    return max(int(event.cpu_memory_usage) for event in trace.events())

"""A model with something to lose, loaders and forwards that fail at a chosen batch, and what is left afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios

INPUTS, FEATURES, CLASSES = 6, 8, 4
_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"

SHORTAGES: dict[str, Callable[[], BaseException]] = {
    "of torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "of the allocator": lambda: RuntimeError(f"{_ALLOCATOR} allocate 21474836480 bytes."),
    "of Python": MemoryError,
}
"""What is raised where memory runs out."""
FAULTS: dict[str, Callable[[], BaseException]] = {
    "runtime": lambda: RuntimeError("the disk is gone"),
    "value": lambda: ValueError("no such sample"),
    "file": lambda: OSError(5, "Input/output error"),
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(0),
    **SHORTAGES,
}
"""What a loader or a forward may raise."""


@dataclass(eq=False)
class Trigger:
    """Raises at one of its calls.

    Attributes:
        make: Makes what is raised.
        at: Number of the call, from 0; a negative one never comes.
        calls: Calls so far.
        lasts: Whether every call from that one on raises.

    """

    make: Callable[[], BaseException] = RuntimeError
    at: int = -1
    calls: int = 0
    lasts: bool = False

    def __call__(self, *_: object) -> None:
        """Count a call, and raise if it is the one."""
        self.calls += 1
        if self.calls == self.at + 1 or (self.lasts and self.calls > self.at >= 0):
            raise self.make()


@dataclass(eq=False)
class Faulty:
    """A well-used model together with what makes its forward fail."""

    trigger: Callable[[Tensor], None] = field(default_factory=Trigger)
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        """Make the model."""
        self.model = well_used_model(self._triggered)

    def _triggered(self, hidden: Tensor) -> None:
        self.trigger(hidden)  # the one of that time, which tests replace


class _Between(nn.Module):
    """The identity, with something done on the way."""

    def __init__(self, done: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.done = done

    def forward(self, inputs: Tensor) -> Tensor:
        self.done(inputs)
        return inputs


def well_used_model(done: Callable[[Tensor], None]) -> nn.Sequential:
    """Return a classifier in the midst of training: modes mixed, a layer frozen, gradients, statistics, hooks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(INPUTS, FEATURES),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(),
            _Between(done),
            nn.Dropout(0.5),
            nn.Linear(FEATURES, FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, CLASSES),
        )
        nn.Sequential(*model[:3], *model[4:])(torch.randn(16, INPUTS)).square().sum().backward()
    model[0].requires_grad_(requires_grad=False)
    model[1].eval()
    model[7].register_forward_pre_hook(_pass_on)
    model[7].register_forward_hook(_pass_on)
    model[5].register_forward_hook(_pass_on, with_kwargs=True)
    model[5].register_full_backward_hook(_pass_on)
    return model


def _pass_on(*_: Any) -> None:
    """Do nothing: a hook of the user's."""


def batches(count: int = 4, rows: int = 8, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return batches of inputs with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(rows, INPUTS, generator=generator), torch.arange(rows) % CLASSES) for _ in range(count)]


def faulty_loader(trigger: Trigger, *, rows: int = 8, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, unless the trigger raises in the place of one."""
    for batch in batches(rows=rows, seed=seed):
        trigger()
        yield batch


def detector(*, is_fusion: bool = False) -> OPNP:
    """Return a detector of the paper's method, or a fusion."""
    return OPNP(ratios=None if is_fusion else Ratios(w_min=0.2))


def answers(fitted: OPNP) -> list[Tensor] | None:
    """Return all that a detector says of some features, None where it is not fitted."""
    if not fitted.is_fitted:
        return None
    features = torch.linspace(-1, 2, 5 * FEATURES).reshape(5, FEATURES)
    said = [fitted.score_features(features), fitted.sensitivity.weight, fitted.masks.weight.double()]
    if fitted.is_calibrated:
        said += fitted.explain_features(features)[1:]
    return [*said, fitted.calibration_scores] if fitted.is_calibrated else said


def same_answers(left: list[Tensor] | None, right: list[Tensor] | None) -> bool:
    """Return whether two detectors say the same, bit for bit."""
    if left is None or right is None:
        return left is right
    return len(left) == len(right) and all(map(torch.equal, left, right))

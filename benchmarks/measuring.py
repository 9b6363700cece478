"""Ratios of what two steps take, measured in turns, and the bounds they are held to."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

__all__ = ["Outcome", "ratios", "seconds"]

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table.

    Attributes:
        name: What was measured, against what.
        unit: Unit of the values; empty for plain ratios.
        values: One a repeat.
        bound: What the median is held to; None where it is only reported.
        kind: Whether the median must be at most or at least the bound.
        notes: What else is worth knowing, such as absolute times on an accelerator.

    """

    name: str
    values: tuple[float, ...]
    bound: float | None
    kind: Literal["at most", "at least"] = "at most"
    unit: str = ""
    notes: str = ""

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the bound holds."""
        if self.bound is None:
            return True
        return self.median <= self.bound if self.kind == "at most" else self.median >= self.bound

    def line(self) -> str:
        """Return the outcome in one line."""
        spread = f"{self.median:.4g}{self.unit} ({min(self.values):.4g} to {max(self.values):.4g})"
        bound = "" if self.bound is None else f", {self.kind} {self.bound:g}{self.unit}"
        verdict = "" if self.bound is None else ("  ok" if self.is_met else "  MISSED")
        return f"{self.name}: {spread}{bound}{verdict}" + (f"\n    {self.notes}" if self.notes else "")

    def to_json(self) -> dict[str, object]:
        """Return the outcome as JSON values."""
        return {**asdict(self), "values": list(self.values), "median": self.median, "is_met": self.is_met}


def seconds(step: Step, *, is_wall: bool = False) -> float:
    """Return what a step takes: time of the processor, which other processes do not lengthen, or of the clock.

    With an accelerator it is always the clock, and the accelerator is waited for.
    """
    clock = time.perf_counter if is_wall or torch.cuda.is_available() else time.process_time
    _wait()
    start = clock()
    step()
    _wait()
    return clock() - start


def ratios(step: Step, floor: Step, *, repeats: int, is_wall: bool = False) -> tuple[float, ...]:
    """Return the time of `step` over that of `floor`, pair by pair in turns, after one run of each to warm up."""
    step()
    floor()
    pairs = [(seconds(step, is_wall=is_wall), seconds(floor, is_wall=is_wall)) for _ in range(repeats)]
    return tuple(first / second for first, second in pairs)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

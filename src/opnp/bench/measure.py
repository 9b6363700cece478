"""Time and memory that a step takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Measurement", "measured"]

Value = TypeVar("Value")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a step took.

    Attributes:
        seconds: Wall-clock time.
        peak_bytes: Growth of the resident memory at its highest above the start; None where the system does not tell.

    """

    seconds: float
    peak_bytes: int | None


def measured(step: Callable[[], Value]) -> tuple[Value, Measurement]:
    """Return what a step returns, and what it took.

    Example:
        >>> value, took = measured(lambda: 1 + 1)
        >>> value, took.seconds >= 0
        (2, True)

    """
    before = _resident("VmRSS") if _forget_peak() else None
    start = time.perf_counter()
    value = step()
    seconds = time.perf_counter() - start
    peak = None if before is None else _resident("VmHWM")
    return value, Measurement(seconds, None if before is None or peak is None else max(0, peak - before))


def _forget_peak() -> bool:
    """Set the highest resident memory back to the present one; return whether the system could."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    """Return a field of the process's status in bytes, or None where there is no such thing."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None

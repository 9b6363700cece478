"""Memory that a step holds of its own: anonymous pages, not the mapped pages of files that the system can drop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["AnonymousMemory", "anonymous_memory"]

Value = TypeVar("Value")

_STATUS = Path("/proc/self/status")
_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class AnonymousMemory:
    """Anonymous resident memory of this process, sampled every 2 ms while a step ran.

    Attributes:
        before: Bytes when it began.
        peak: Bytes at the highest sample.

    """

    before: int
    peak: int

    @property
    def growth(self) -> int:
        """Bytes by which the step grew at its highest."""
        return self.peak - self.before


def anonymous_memory(step: Callable[[], Value]) -> tuple[Value, AnonymousMemory | None]:
    """Return what a step returns, and the anonymous memory it took; None where the system does not tell.

    What the process took before and let go may be used again unseen: measure in a fresh process.

    Example:
        >>> value, memory = anonymous_memory(lambda: 1 + 1)
        >>> value, memory is None or memory.growth >= 0
        (2, True)

    """
    before = _anonymous()
    if before is None:
        return step(), None
    highest = before
    is_done = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not is_done.wait(_SECONDS):
            highest = max(highest, _anonymous() or 0)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        value = step()
    finally:
        is_done.set()
        watcher.join()
    return value, AnonymousMemory(before=before, peak=max(highest, _anonymous() or 0))


def _anonymous() -> int | None:
    """Return the anonymous resident memory in bytes, or None where there is no such figure."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)

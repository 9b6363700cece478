"""What a service takes in the course of a soak, and the checks that nothing of it grows."""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MIB",
    "Footprint",
    "fifths",
    "footprint",
    "p95",
    "require_flat_latency",
    "require_flat_memory",
    "require_flat_work",
]

MIB = 1 << 20

_ENOUGH = 500
"""Answers of which a 95th percentile is compared."""


@dataclass(frozen=True)
class Footprint:
    """What the process of the service takes at a moment.

    Attributes:
        at: Seconds since the soak began.
        memory: Bytes of resident memory.
        files: Open files, connections among them.
        threads: Threads.
        work: Seconds of processor time so far.
        answered: Requests answered so far, by the clients' count.

    """

    at: float
    memory: int
    files: int
    threads: int
    work: float = 0.0
    answered: int = 0


def footprint(process: int, *, at: float, answered: int) -> Footprint:
    """Return what a process of this machine takes now."""
    folder = Path("/proc") / str(process)
    facts = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="ascii").splitlines())
    memory = int(facts["VmRSS"].split()[0]) * 1024
    ticks = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    work = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    files = len(os.listdir(folder / "fd"))  # noqa: PTH208  # names alone
    return Footprint(at, memory, files, int(facts["Threads"]), work, answered)


def fifths(values: Sequence[tuple[float, float]], seconds: float) -> list[list[float]]:
    """Return values with their times as five lists, one for each fifth of the time."""
    return [[value for at, value in values if part * seconds / 5 <= at < (part + 1) * seconds / 5] for part in range(5)]


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(values, n=20)[-1]


def require_flat_latency(
    values: Sequence[tuple[float, float]], controls: Sequence[tuple[float, float]], seconds: float
) -> None:
    """Fail unless the last fifth is about as fast as the first: median three times, p95 five times as slow at most.

    Other work on the machine makes all requests slower for a while. By as much as it made the controls slower, the
    others may be slower too. The p95 of few answers says nothing: one halt of the machine makes it.
    """
    first, *_, last = fifths(values, seconds)
    before, *_, after = fifths(controls, seconds)
    assert len(last) > 1, "median became slower: the last fifth has no answers"
    load = max(1.0, statistics.median(after) / statistics.median(before))
    bounds: list[tuple[str, Callable[[Sequence[float]], float], float, float]]
    bounds = [("median", statistics.median, 3, 0.01), ("p95", p95, 5, 0.05)]
    for name, take, times, seconds_more in bounds[: 2 if len(last) >= _ENOUGH else 1]:
        most = load * times * take(first) + seconds_more
        assert take(last) <= most, f"{name} became slower: {take(first):.4f} s, then {take(last):.4f} s"


def require_flat_work(found: Sequence[Footprint], seconds: float) -> None:
    """Fail if a request of the last fifth takes half as much processor time again as one of the second.

    It is nearly the same whatever else the machine does, where latency is not.
    """
    parts = [[each for each in found if part * seconds / 5 <= each.at < (part + 1) * seconds / 5] for part in range(5)]
    second, last = (
        (part[-1].work - part[0].work) / (part[-1].answered - part[0].answered) for part in (parts[1], parts[4])
    )
    assert last <= 1.5 * second + 0.0005, f"work grew from {1000 * second:.2f} to {1000 * last:.2f} ms a request"


def require_flat_memory(found: Sequence[Footprint], seconds: float, *, most: int) -> None:
    """Fail if the last fifth takes more memory than the second, threads appear, or connections stay open."""
    _, second, *_, last = fifths([(each.at, each.memory) for each in found], seconds)
    grown = statistics.median(last) - statistics.median(second)
    assert grown <= most, f"memory grew by {grown / MIB:.1f} MiB"
    _, second, *_, last = fifths([(each.at, each.threads) for each in found], seconds)
    assert max(last) <= max(second), "threads appeared"
    _, second, *_, last = fifths([(each.at, each.files) for each in found], seconds)
    assert statistics.median(last) <= statistics.median(second) + 10, "open files grew"

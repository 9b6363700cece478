"""How often the monitor raises an alarm: on simulated streams of known inputs, and on streams that change.

    python -m studies.monitor_streams

Every stream has a calibration set of its own, and both are normal; the table says what a change does to the scores
after it. Two tables are printed, for docs/how-to/monitoring.md: the share of streams of known inputs that ever alarm,
and the share of changes that are noticed within 500 samples, with the median delay.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from opnp.monitor.drift import MartingaleState, alarm_threshold, log_wealth
from opnp.monitor.online_p_values import earlier_counts, online_p_value, ordered_keys

__all__ = ["alarm_share", "known_alarms", "simple_jumper", "stream_p_values", "stream_wealth"]

_PART = 500
"""Streams at a time."""

_AFTER = 500
_LEVEL = 0.01
_CALIBRATION = (100, 1000)
_CHANGES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "10 % far OOD, from the start": (0, lambda scores, chance: scores + 10 * (chance < 0.1)),
    "10 % far OOD, after 200": (200, lambda scores, chance: scores + 10 * (chance < 0.1)),
    "10 % far OOD, after 5000": (5000, lambda scores, chance: scores + 10 * (chance < 0.1)),
    "5 % far OOD, after 200": (200, lambda scores, chance: scores + 10 * (chance < 0.05)),
    "10 % near OOD (+1.5), after 200": (200, lambda scores, chance: scores + 1.5 * (chance < 0.1)),
    "all OOD, after 200": (200, lambda scores, _: scores + 10),
    "all a little larger (+0.3), after 200": (200, lambda scores, _: scores + 0.3),
    "all smaller (-0.5), after 200": (200, lambda scores, _: scores - 0.5),
    "all more alike (/ 3), after 200": (200, lambda scores, _: scores / 3),
}


def stream_p_values(calibration: Tensor, streams: Tensor, generator: torch.Generator) -> Tensor:
    """Return online p-values of streams, shape ``(runs, samples)``, by calibration sets ``(runs, n)``; ties allowed."""
    runs, samples = calibration.shape
    both = torch.cat([calibration, streams], 1).double()
    ties, chances = (torch.rand(both.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    keys = ordered_keys(both.flatten(), ties.flatten(), values=both.unique()).reshape(both.shape)
    ordered, own = keys[:, :samples].sort(1).values, keys[:, samples:].contiguous()
    cells = samples - torch.searchsorted(ordered, own, side="right")
    above, equal, _ = earlier_counts(cells, torch.zeros(runs, samples + 1, dtype=torch.int64))
    return online_p_value(cells + above, equal, chances[:, samples:], calibration=samples, start=0)


def stream_wealth(calibration: Tensor, streams: Tensor, generator: torch.Generator) -> Tensor:
    """Return the log wealth after each sample, shape ``(runs, samples)``."""
    p_values = stream_p_values(calibration, streams, generator)
    return log_wealth(p_values, MartingaleState.start(len(streams)))[0]


def alarm_share(wealth: Tensor, *, level: float) -> float:
    """Return the share of streams with an alarm at any time."""
    return float((wealth.amax(1) >= alarm_threshold(level)).double().mean())


def simple_jumper(p_values: Tensor, *, rate: float = 0.01) -> Tensor:
    """Return the log wealth of the simple jumper as published: bets 1 + e (p - 1/2), e in -1, 0, 1; for comparison."""
    slopes = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    shares, total = torch.full((len(p_values), 3), 1 / 3, dtype=torch.float64), torch.zeros(len(p_values)).double()
    wealth = torch.empty(p_values.shape, dtype=torch.float64)
    for number in range(p_values.shape[1]):
        money = ((1 - rate) * shares + rate / 3) * (1 + slopes * (p_values[:, number, None] - 0.5))
        total = total + money.sum(1).log()
        shares = money / money.sum(1, keepdim=True)
        wealth[:, number] = total
    return wealth


def known_alarms(runs: int, *, calibration: int, length: int, seed: int, levels: tuple[float, ...]) -> list[int]:
    """Return how many of simulated streams of known inputs ever raise an alarm, at each level."""
    generator, found = torch.Generator().manual_seed(seed), [0] * len(levels)
    for start in range(0, runs, _PART):
        both = torch.randn(min(_PART, runs - start), calibration + length, generator=generator)
        peaks = stream_wealth(both[:, :calibration], both[:, calibration:], generator).amax(1)
        for place, level in enumerate(levels):
            found[place] += int((peaks >= alarm_threshold(level)).sum())
    return found


def _noticed(wealth: Tensor, before: int) -> str:
    """Return the share of streams with an alarm after the change, and the median of its delay in samples."""
    first = (wealth >= alarm_threshold(_LEVEL)).double().argmax(1)
    is_noticed = (wealth.amax(1) >= alarm_threshold(_LEVEL)) & (first >= before)
    delay = f" ({int((first[is_noticed] - before + 1).median())})" if bool(is_noticed.any()) else ""
    return f"{float(is_noticed.double().mean()):.2f}{delay}"


def _changed(change: str, runs: int, samples: int) -> Tensor:
    """Return the p-values of streams that change, shape ``(runs, before + 500)``."""
    before, changed = _CHANGES[change]
    generator = torch.Generator().manual_seed(samples)
    both = torch.randn(runs, samples + before + _AFTER, generator=generator)
    after = both[:, samples + before :]
    after.copy_(changed(after, torch.rand(after.shape, generator=generator)))
    return stream_p_values(both[:, :samples], both[:, samples:], generator)


def _rows(*, runs: int, length: int, changes: int) -> Iterator[str]:
    """Return the lines of the tables, as each is known."""
    yield "| calibration samples | level | streams with an alarm | bound: level and three standard errors |"
    yield "|---:|---:|---:|---:|"
    levels = (0.01, 0.05)
    for samples in _CALIBRATION:
        alarms = known_alarms(runs, calibration=samples, length=length, seed=samples, levels=levels)
        for level, count in zip(levels, alarms, strict=True):
            most = level + 3 * math.sqrt(level * (1 - level) / runs)
            yield f"| {samples} | {level} | {count / runs:.2%} | {most:.2%} |"
    yield "\n| Change | n | simple jumper as published | opnp |\n|---|---:|---:|---:|"
    for change, (before, _) in _CHANGES.items():
        for samples in _CALIBRATION:
            p_values = _changed(change, changes, samples)
            own, _ = log_wealth(p_values, MartingaleState.start(len(p_values)))
            yield f"| {change} | {samples} | {_noticed(simple_jumper(p_values), before)} | {_noticed(own, before)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="How often the monitor raises an alarm, on simulated streams.")
    parser.add_argument("--runs", type=int, default=10_000, help="streams of known inputs, for each row")
    parser.add_argument("--length", type=int, default=2000, help="samples of each")
    parser.add_argument("--changes", type=int, default=300, help="streams for each change")
    options = parser.parse_args()
    for row in _rows(runs=options.runs, length=options.length, changes=options.changes):
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()

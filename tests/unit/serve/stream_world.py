"""Many streams at once, each with a calibration set of its own: their evidence by the functions of the core."""

import torch
from torch import Tensor

from opnp.core.martingale import MartingaleState, alarm_threshold, log_wealth
from opnp.core.online_p_values import earlier_counts, online_p_value, ordered_keys

__all__ = ["alarm_share", "stream_p_values", "stream_wealth"]


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

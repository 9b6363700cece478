"""Is a stream still in distribution? Scores in, at any time the evidence that they are unlike the calibration scores.

The promise: if calibration and stream are exchangeable (drawn from one source, in random order), the probability that
there is ever an alarm is at most `level`, however long the stream is, however often one looks, with ties and with any
number of calibration samples. `opnp.core.online_p_values` and `opnp.core.martingale` say why.
"""

import os
from typing import Self

import msgspec
import torch
from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.core.checks import checked_scores
from opnp.core.martingale import MartingaleState
from opnp.core.online_p_values import (
    cell_of_scores,
    earlier_counts,
    online_p_value,
    ordered_keys,
)
from opnp.errors import ArtifactError, ShapeError
from opnp.serve.counted import CountedScores
from opnp.serve.drift import DriftSummary, DriftTest
from opnp.serve.stream_uniforms import StreamUniforms
from opnp.values.reading import Value

__all__ = ["DriftMonitor"]

_KIND = "monitor"
_FORMAT_VERSION = 1
_MOST_RECENT = 512
"""Samples that `MartingaleState.recent` counts, at most."""
_LONGEST = 10**12
"""Samples beyond which what a martingale brings into play at each is lost in rounding."""


class _Told(Value, frozen=True):
    """The metadata of a file, as `DriftMonitor.save` writes them."""

    level: float
    seed: int
    samples: int
    alarm_at: int | None
    peak_at: int | None


class DriftMonitor:
    """Watches whether scores still look like the calibration scores, with a bound on false alarms.

    Kept are the n calibration scores and n + 1 counts, however long the stream becomes: a sample is known by the
    calibration scores that it lies between. Samples that arrive in pieces lead to the same result as all at once. Each
    stretch that is noted in `counted` adds 24 bytes to the saved state.

    Attributes:
        counted: Which stretches were taken, for who notes them here; `update` neither looks at it nor changes it.

    Args:
        calibration_scores: Scores of held-out ID samples, shape ``(n,)``, any order; such as
            `OPNP.calibration_scores`.
        level: Probability of ever raising a false alarm, at most; in (0, 1).
        seed: Seed of the numbers that break ties; a whole number that must not be chosen by looking at results.

    Raises:
        EmptyDataError: If there is no calibration score.
        NonFiniteError: If one is NaN.
        OptionError: If `level` lies outside (0, 1), or `seed` is no whole number of at least 0.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> monitor = DriftMonitor(torch.randn(1000, generator=generator), level=0.01)
        >>> wealth = monitor.update(torch.randn(500, generator=generator))
        >>> monitor.alarm_at is None
        True
        >>> wealth = monitor.update(torch.randn(500, generator=generator) + 1)
        >>> monitor.alarm_at > 500
        True

    References:
        Vovk, "Testing Randomness Online", Statistical Science 2021.

    """

    def __init__(self, calibration_scores: Tensor, *, level: float = 0.01, seed: int = 0) -> None:
        """Order the calibration scores, equal ones by chance."""
        scores = checked_scores(calibration_scores, name="calibration_scores").detach().cpu()
        self._test = DriftTest(level=level)
        self._uniforms = StreamUniforms(seed)
        self._calibration = scores.sort().values
        self._values = self._calibration.unique()
        ties = self._uniforms.calibration_ties(len(scores))
        self._keys = ordered_keys(self._calibration, ties, values=self._values).sort().values
        self._counts = torch.zeros(len(scores) + 1, dtype=torch.int64)
        self.counted = CountedScores()

    def update(self, scores: Tensor) -> Tensor:
        """Take further scores of the stream, in its order, and return the log wealth after each.

        Args:
            scores: Scores by the detector that scored the calibration samples, shape ``(batch,)``; none is no error.

        Returns:
            Log wealth, shape ``(batch,)``, float64.

        Raises:
            ShapeError: If the scores have not exactly one axis.
            NonFiniteError: If one is NaN; then nothing was taken.

        """
        if isinstance(scores, Tensor) and scores.ndim == 1 and len(scores) == 0:
            return torch.empty(0, dtype=torch.float64)
        judged, start = checked_scores(scores, name="scores").detach().cpu(), self.samples
        ties = self._uniforms.stream_ties(len(judged), start=start)
        cells = cell_of_scores(ordered_keys(judged, ties, values=self._values), self._keys)
        above, equal, self._counts = earlier_counts(cells, self._counts)
        uniforms = self._uniforms.ranks(len(judged), start=start)
        samples = len(self._calibration)
        return self._test.update(online_p_value(cells + above, equal, uniforms, calibration=samples, start=start))

    @property
    def samples(self) -> int:
        """Samples of the stream so far."""
        return self._test.state.samples

    @property
    def calibration_samples(self) -> int:
        """Number n of calibration scores."""
        return len(self._calibration)

    @property
    def level(self) -> float:
        """Probability of ever raising a false alarm, at most."""
        return self._test.level

    @property
    def seed(self) -> int:
        """Seed of the numbers that break ties."""
        return self._uniforms.seed

    @property
    def log_wealth(self) -> float:
        """Logarithm of the evidence against the stream now; 0 at the start, an alarm at log(1 / level)."""
        return self._test.log_wealth

    @property
    def alarm_at(self) -> int | None:
        """Index of the sample, from 0, at which there was an alarm; None where there was none. It stays."""
        return self._test.alarm_at

    def summary(self) -> DriftSummary:
        """Return evidence, alarm and the histogram of the p-values as they are now."""
        return self._test.summary()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the monitor to a safetensors file, from which `load` goes on to the same bits.

        Raises:
            OSError: If the file cannot be written; then an older one stays as it was.

        """
        test = self._test
        tensors = {
            "calibration": self._calibration,
            "cells": self._counts,
            "bins": test.counts,
            "log_active": test.state.log_active,
            "recent": test.state.recent,
            "wealth": torch.tensor([test.log_wealth, test.peak_log_wealth], dtype=torch.float64),
            "counted": self.counted.to_tensor(),
        }
        metadata = {
            "level": test.level,
            "seed": self._uniforms.seed,
            "samples": test.state.samples,
            "alarm_at": test.alarm_at,
            "peak_at": test.peak_at,
        }
        write_artifact(path, kind=_KIND, format_version=_FORMAT_VERSION, tensors=tensors, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a monitor that `save` wrote.

        Raises:
            MissingFileError: If there is no such file.
            ArtifactError: If it is no monitor, or is damaged.

        """
        tensors, metadata = read_artifact(path, kind=_KIND, format_version=_FORMAT_VERSION)
        try:
            told = msgspec.convert(metadata, _Told)
            monitor = cls(tensors["calibration"], level=told.level, seed=told.seed)
            monitor._counts, test = _alike(tensors["cells"], monitor._counts), monitor._test
            test.counts = _alike(tensors["bins"], test.counts)
            log_active = _alike(tensors["log_active"], test.state.log_active)
            recent = _alike(tensors["recent"], test.state.recent)
            wealth, samples = _alike(tensors["wealth"], torch.empty(2, dtype=torch.float64)), told.samples
            test.state = MartingaleState(samples=samples, log_active=log_active, recent=recent)
            test.log_wealth, test.peak_log_wealth = wealth.tolist()
            test.alarm_at, test.peak_at = _place(told.alarm_at, samples), _place(told.peak_at, samples)
            _require_samples(samples, monitor._counts, test.counts)
            _require_past(samples, log_active, wealth, recent)
            if "counted" in tensors:  # older versions did not note it
                monitor.counted = CountedScores.from_tensor(tensors["counted"])
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} holds no monitor that can be read ({error}). Start a new one.") from error
        return monitor

    def is_calibrated_by(self, scores: Tensor) -> bool:
        """Return whether these are the scores that the monitor compares with, in any order."""
        return torch.equal(self._calibration, scores.detach().double().cpu().sort().values)


def _place(value: int | None, samples: int) -> int | None:
    if value is None or 0 <= value < samples:
        return value
    raise ValueError(f"sample {value!r} of {samples}")


def _require_samples(samples: int, *counts: Tensor) -> None:
    if any(int(count.min()) < 0 or int(count.sum()) != samples for count in counts):
        raise ValueError(f"the counts are not those of {samples} samples")


def _require_past(samples: int, log_active: Tensor, wealth: Tensor, recent: Tensor) -> None:
    if samples > _LONGEST or bool(torch.cat([log_active.flatten(), wealth]).isnan().any()):
        raise ValueError("its wealth cannot be gone on from")
    if int(recent.min()) < 0 or int(recent.sum()) > min(samples, _MOST_RECENT):
        raise ValueError("its recent samples are more than there can be")


def _alike(tensor: Tensor, pattern: Tensor) -> Tensor:
    if tensor.shape != pattern.shape or tensor.dtype != pattern.dtype:
        raise ShapeError(f"a tensor of shape {tuple(pattern.shape)} was expected, got {tuple(tensor.shape)}")
    return tensor

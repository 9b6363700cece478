"""Is a stream still in distribution? Scores in, at any time the evidence that they are unlike the calibration scores.

The promise: if calibration and stream are exchangeable (drawn from one source, in random order), the probability that
there is ever an alarm is at most `level`, however long the stream is, however often one looks, with ties and with any
number of calibration samples. `opnp.monitor.online_p_values` and `opnp.monitor.drift` say why.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import msgspec
import torch
from filelock import FileLock
from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.core.checks import checked_scores
from opnp.errors import ArtifactError, InputTypeError, OptionError
from opnp.files import require_writable
from opnp.monitor.drift import DriftSummary, DriftTest, MartingaleState
from opnp.monitor.online_p_values import (
    CALIBRATION_TIES,
    RANKS,
    STREAM_TIES,
    cell_of_scores,
    earlier_counts,
    numbered_uniforms,
    online_p_value,
    ordered_keys,
)
from opnp.values.reading import Value

__all__ = ["CountedScores", "DriftMonitor", "checked_seed", "locked_state"]

_KIND = "monitor"
_FORMAT_VERSION = 2
_OLDER = (1,)
_LONGEST = 10**12
"""Samples beyond which what a martingale brings into play at each is lost in rounding."""

_FEWEST_COMMON = 20
"""Scores that a stretch must have to be known again; fewer can be equal by chance."""

_DIGITS = 32


class _Told(Value, frozen=True):
    """The metadata of a file, as `DriftMonitor.save` writes them."""

    level: float
    seed: int
    samples: int
    alarm_at: int | None
    peak_at: int | None
    counted: tuple[tuple[int, str], ...]


class DriftMonitor:
    """Watches whether scores still look like the calibration scores, with a bound on false alarms.

    Kept are the n calibration scores and n + 1 counts, however long the stream becomes: a sample is known by the
    calibration scores that it lies between. Samples that arrive in pieces lead to the same result as all at once. Each
    stretch that is noted in `counted` adds about 50 bytes to the saved state.

    Attributes:
        seed: Seed of the numbers that break ties.
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
        self.seed = checked_seed(seed)
        self._calibration = scores.sort().values
        self._values = self._calibration.unique()
        ties = self._uniforms(len(scores), CALIBRATION_TIES)
        self._keys = ordered_keys(self._calibration, ties, values=self._values).sort().values
        self._counts = torch.zeros(len(scores) + 1, dtype=torch.int64, device="cpu")
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
            return torch.empty(0, dtype=torch.float64, device="cpu")
        judged, start = checked_scores(scores, name="scores").detach().cpu(), self.samples
        ties = self._uniforms(len(judged), STREAM_TIES)
        cells = cell_of_scores(ordered_keys(judged, ties, values=self._values), self._keys)
        above, equal, self._counts = earlier_counts(cells, self._counts)
        ranks = self._uniforms(len(judged), RANKS)
        samples = self.calibration_samples
        return self._test.update(online_p_value(cells + above, equal, ranks, calibration=samples, start=start))

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
            "wealth": torch.tensor([test.log_wealth, test.peak_log_wealth], dtype=torch.float64, device="cpu"),
        }
        metadata = {
            "level": test.level,
            "seed": self.seed,
            "samples": test.state.samples,
            "alarm_at": test.alarm_at,
            "peak_at": test.peak_at,
            "counted": sorted(self.counted.stretches),
        }
        write_artifact(path, kind=_KIND, format_version=_FORMAT_VERSION, tensors=tensors, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a monitor that `save` wrote.

        Raises:
            MissingFileError: If there is no such file.
            ArtifactError: If it is no monitor, or is damaged.

        """
        tensors, metadata = read_artifact(path, kind=_KIND, format_version=_FORMAT_VERSION, older=_OLDER)
        if "format_version" in metadata:
            raise ArtifactError(
                f"{path} is the state of a monitor of an older opnp, which bet otherwise: its evidence cannot be gone "
                f"on from. Start a new one, from the first of the files.",
            )
        try:
            told = msgspec.convert(metadata, _Told)
            monitor = cls(tensors["calibration"], level=told.level, seed=told.seed)
            monitor.counted, test = CountedScores(frozenset(told.counted)), monitor._test
            monitor._counts, test.counts = tensors["cells"], tensors["bins"]
            test.state = MartingaleState(samples=told.samples, log_active=tensors["log_active"])
            test.log_wealth, test.peak_log_wealth = tensors["wealth"].tolist()
            test.alarm_at, test.peak_at = told.alarm_at, told.peak_at
            monitor._require_whole(tensors["wealth"])
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} holds no monitor that can be read ({error}). Start a new one.") from error
        return monitor

    def is_calibrated_by(self, scores: Tensor) -> bool:
        """Return whether these are the scores that the monitor compares with, in any order."""
        return torch.equal(self._calibration, scores.detach().double().cpu().sort().values)

    def _uniforms(self, count: int, sequence: int) -> Tensor:
        """Return the numbers of a sequence for the next samples."""
        start = 0 if sequence == CALIBRATION_TIES else self.samples
        return numbered_uniforms(start, count, seed=self.seed, sequence=sequence)

    def _require_whole(self, wealth: Tensor) -> None:
        """Raise `ValueError` if what was read cannot be the state of a monitor."""
        new, samples, state = DriftTest(), self.samples, self._test.state
        pairs = (
            (self._counts, torch.zeros(len(self._calibration) + 1, dtype=torch.int64, device="cpu")),
            (self._test.counts, new.counts),
            (state.log_active, new.state.log_active),
            (wealth, torch.zeros(2, dtype=torch.float64, device="cpu")),
        )
        for tensor, pattern in pairs:
            if tensor.shape != pattern.shape or tensor.dtype != pattern.dtype:
                raise ValueError(f"a tensor of shape {tuple(pattern.shape)} was expected, got {tuple(tensor.shape)}")
        for counts in (self._counts, self._test.counts):
            if int(counts.min()) < 0 or int(counts.sum()) != samples:
                raise ValueError(f"the counts are not those of {samples} samples")
        if samples > _LONGEST or bool(torch.cat([state.log_active, wealth]).isnan().any()):
            raise ValueError("its wealth cannot be gone on from")
        for place in (self._test.alarm_at, self._test.peak_at):
            if place is not None and not 0 <= place < samples:
                raise ValueError(f"sample {place} of {samples}")


@dataclass(frozen=True, slots=True)
class CountedScores:
    """Lengths and digests of the stretches of scores that were counted; a stretch is a file, as a rule.

    Stretches of fewer than 20 scores are not noted, for they can be equal by chance.

    Attributes:
        stretches: Number of scores and digest of each, in no order.

    Example:
        >>> import torch
        >>> monday = torch.arange(30.0)
        >>> counted = CountedScores().joined(monday)
        >>> counted.repeated(monday), counted.repeated(torch.arange(40.0)), counted.repeated(monday + 1)
        (30, 30, 0)

    """

    stretches: frozenset[tuple[int, str]] = frozenset()

    def repeated(self, scores: Tensor) -> int:
        """Return how many of these scores, from the first on, were counted before as one stretch; 0 where none were.

        At least 20, all of them or the first: so a file that was given is known again under another name and in
        another format, and one that had rows appended too.

        Args:
            scores: A stretch of the stream, shape ``(samples,)``.

        """
        values = _plain(scores)
        lengths = {length for length, _ in self.stretches}
        known = sorted(n for n in lengths if _FEWEST_COMMON <= n <= len(values))
        digest, start, longest = hashlib.sha256(), 0, 0
        for length in known:
            digest.update(values[start:length].numpy().tobytes())
            start = length
            if (length, digest.hexdigest()[:_DIGITS]) in self.stretches:
                longest = length
        return longest

    def joined(self, scores: Tensor) -> "CountedScores":
        """Return the same with one more stretch, of the shape ``(samples,)``; one of fewer than 20 is not noted."""
        values = _plain(scores)
        if len(values) < _FEWEST_COMMON:
            return self
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:_DIGITS]
        return CountedScores(self.stretches | {(len(values), digest)})


def _plain(scores: Tensor) -> Tensor:
    return scores.detach().double().cpu().contiguous()


def checked_seed(seed: int) -> int:
    """Return a seed.

    Raises:
        InputTypeError: If it is no whole number.
        OptionError: If it is negative.

    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputTypeError(f"`seed` must be a whole number, got {type(seed).__name__}.")
    if seed < 0:
        raise OptionError(f"`seed` must be at least 0, got {seed}.")
    return seed


@contextmanager
def locked_state(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the file of a monitor from reading to writing it; who comes meanwhile waits.

    The lock is a file beside it, which ends in ``.lock`` and may stay. It is let go when the process ends, however.

    Raises:
        OSError: If no file can be written there.

    """
    require_writable(path)
    with FileLock(f"{os.path.realpath(path)}.lock"):
        yield

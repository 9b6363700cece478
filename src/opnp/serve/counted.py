"""Which stretches of a stream were counted already: a file that is given twice, or has grown since, is noticed."""

import hashlib
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["CountedScores"]

_FEWEST_COMMON = 20
"""Scores that a stretch must have to be known again; fewer can be equal by chance."""

_BYTES = 16
_WORDS = 3


@dataclass(frozen=True, slots=True)
class CountedScores:
    """Lengths and digests of the stretches of scores that were counted; a stretch is a file, as a rule.

    Stretches of fewer than 20 scores are not noted, for they can be equal by chance; each other takes 24 bytes.

    Attributes:
        stretches: Number of scores and digest of each, in no order.

    Example:
        >>> import torch
        >>> monday = torch.arange(30.0)
        >>> counted = CountedScores().joined(monday)
        >>> counted.repeated(monday), counted.repeated(torch.arange(40.0)), counted.repeated(monday + 1)
        (30, 30, 0)

    """

    stretches: frozenset[tuple[int, bytes]] = frozenset()

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
            if (length, digest.copy().digest()[:_BYTES]) in self.stretches:
                longest = length
        return longest

    def joined(self, scores: Tensor) -> "CountedScores":
        """Return the same with one more stretch, of the shape ``(samples,)``; one of fewer than 20 is not noted."""
        values = _plain(scores)
        if len(values) < _FEWEST_COMMON:
            return self
        digest = hashlib.sha256(values.numpy().tobytes()).digest()[:_BYTES]
        return CountedScores(self.stretches | {(len(values), digest)})

    def to_tensor(self) -> Tensor:
        """Return the stretches as int64, shape ``(stretches, 3)``."""
        rows = [[length, *_words(digest)] for length, digest in sorted(self.stretches)]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, _WORDS)

    @classmethod
    def from_tensor(cls, rows: Tensor) -> Self:
        """Return what `to_tensor` gave.

        Raises:
            ValueError: If it is no such tensor.

        """
        if rows.ndim != 2 or rows.shape[1] != _WORDS or rows.dtype != torch.int64:
            raise ValueError(f"counted stretches of the shape {tuple(rows.shape)}")
        found = [
            (length, b"".join(word.to_bytes(8, "big", signed=True) for word in words))
            for length, *words in rows.tolist()
        ]
        return cls(frozenset(found))


def _plain(scores: Tensor) -> Tensor:
    return scores.detach().double().cpu().contiguous()


def _words(digest: bytes) -> list[int]:
    return [int.from_bytes(digest[start : start + 8], "big", signed=True) for start in (0, 8)]

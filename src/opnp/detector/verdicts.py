"""Calibration on held-out ID samples, and the verdicts that it allows."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from opnp.core.conformal import conformal_p_value, flagged_rank, is_flagged, keep_threshold

__all__ = ["Calibration", "Verdict"]


class Verdict(NamedTuple):
    """What a detector says of a batch of inputs.

    Attributes:
        predicted_class: Class predicted by the original head, shape ``(batch,)``, int64.
        score: Larger = more OOD, shape ``(batch,)``.
        p_value: Conformal p-value, small = OOD, shape ``(batch,)``, float64.
        is_ood: True = flagged, shape ``(batch,)``, bool.

    """

    predicted_class: Tensor
    score: Tensor
    p_value: Tensor
    is_ood: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Calibration:
    """Scores of held-out ID samples and the share of ID to keep.

    Attributes:
        scores: Ascending, shape ``(n,)``, float64, on the CPU.
        keep: Share of ID that is not flagged, in expectation at least, in (0, 1).

    """

    scores: Tensor
    keep: float

    @classmethod
    def from_scores(cls, scores: Tensor, *, keep: float) -> Self:
        """Return the calibration by these scores, in any order.

        Raises:
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few scores for this `keep`.

        """
        flagged_rank(len(scores), keep=keep)
        return cls(scores=scores.detach().double().cpu().sort().values, keep=float(keep))

    @property
    def threshold(self) -> float:
        """The score above which an input is flagged."""
        return keep_threshold(self.scores, keep=self.keep)

    def p_value(self, scores: Tensor) -> Tensor:
        """Return the conformal p-values of scores, shape ``(batch,)`` or ``()``, float64."""
        return conformal_p_value(scores.reshape(-1), self.scores).reshape(scores.shape)

    def is_ood(self, scores: Tensor) -> Tensor:
        """Return whether scores are flagged, shape ``(batch,)`` or ``()``, bool; decided by integer rank."""
        return is_flagged(scores.reshape(-1), self.scores, keep=self.keep).reshape(scores.shape)

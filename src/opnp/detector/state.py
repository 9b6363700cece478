"""What fitting and calibrating leave, as one immutable value: replaced as a whole or not at all."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from opnp.detector.fitting import Fitted
from opnp.detector.link import ModelLink
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Settings
from opnp.detector.tuning import Tuning
from opnp.detector.verdicts import Calibration
from opnp.model import InputAxes

__all__ = ["State"]


@dataclass(frozen=True, eq=False, slots=True)
class State:
    """A fitted detector.

    Attributes:
        fitted: Sensitivities and head.
        scorer: The pruned head with its settings.
        link: The model, or None if the detector was fitted from features.
        calibration: The calibration, or None.
        tuning: How automatic settings were chosen, or None.
        head_name: The head's dotted name in the model it was fitted on; None if fitted from features.
        axes: Number of axes of a batch of inputs; None if fitted from features.

    """

    fitted: Fitted
    scorer: Scorer
    link: ModelLink | None = None
    calibration: Calibration | None = None
    tuning: Tuning | None = None
    head_name: str | None = None
    axes: InputAxes | None = None

    def calibrated(self, scores: Iterable[Tensor], *, keep: float) -> Self:
        """Return this state, calibrated on the scores of held-out ID inputs, shape ``(batch,)`` each."""
        everything = torch.cat([batch.double().cpu() for batch in scores])
        return replace(self, calibration=Calibration.from_scores(everything, keep=keep))

    def with_settings(self, settings: Settings) -> Self:
        """Return this state under other settings, uncalibrated; the sensitivities stay."""
        return replace(self, scorer=Scorer.from_fitted(self.fitted, settings), calibration=None, tuning=None)

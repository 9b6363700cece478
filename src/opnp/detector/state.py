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
from opnp.detector.verdicts import Calibration

__all__ = ["State"]


@dataclass(frozen=True, eq=False, slots=True)
class State:
    """A fitted detector.

    Attributes:
        fitted: Sensitivities and head.
        scorer: The pruned head with its settings.
        link: The model, or None if the detector was fitted from features.
        calibration: The calibration, or None.

    """

    fitted: Fitted
    scorer: Scorer
    link: ModelLink | None = None
    calibration: Calibration | None = None

    def calibrated(self, batches: Iterable[Tensor], *, keep: float) -> Self:
        """Return this state, calibrated on batches of checked features of held-out ID inputs."""
        scores = [self.scorer.scores(features).double().cpu() for features in batches]
        return replace(self, calibration=Calibration.from_scores(torch.cat(scores), keep=keep))

    def with_settings(self, settings: Settings) -> Self:
        """Return this state under other settings, uncalibrated; the sensitivities stay."""
        return replace(self, scorer=Scorer.from_fitted(self.fitted, settings), calibration=None)

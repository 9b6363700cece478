"""What rank 0 decided, as bytes that the other ranks take over: settings, how they were chosen, calibration."""

import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from opnp.detector.settings import Settings
from opnp.detector.tuning import Tuning
from opnp.detector.verdicts import Calibration

__all__ = ["Outcome"]


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """What is decided on held-out samples, or without any.

    Attributes:
        settings: Settings with nothing left automatic.
        tuning: How they were chosen, or None.
        calibration: Calibration, or None.

    """

    settings: Settings
    tuning: Tuning | None
    calibration: Calibration | None

    def to_bytes(self) -> bytes:
        """Return the outcome as bytes: a line of JSON, and the calibration scores bit by bit."""
        calibration = self.calibration
        line = json.dumps(
            {
                "settings": self.settings.to_json(),
                "tuning": None if self.tuning is None else self.tuning.to_json(),
                "keep": None if calibration is None else calibration.keep,
            }
        )
        return line.encode() + b"\n" + (b"" if calibration is None else calibration.scores.numpy().tobytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the outcome that `to_bytes` gave; of the trials, as in a saved detector, two are left."""
        line, _, scores = content.partition(b"\n")
        values = json.loads(line)
        calibration = None
        if values["keep"] is not None:
            array = np.frombuffer(scores, dtype=np.float64).copy()
            calibration = Calibration.from_scores(torch.from_numpy(array), keep=values["keep"])
        return cls(
            settings=Settings.from_json(values["settings"]),
            tuning=None if values["tuning"] is None else Tuning.from_json(values["tuning"]),
            calibration=calibration,
        )

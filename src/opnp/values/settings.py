"""The words that settings are named by, each list once, and a default that two floors share."""

from typing import Literal

__all__ = ["RANK_TIMEOUT", "CalibratedBy", "NeuronReading", "Precision", "Scope", "ScoreName"]

Scope = Literal["layer", "class"]
"""What weights are ranked within."""

NeuronReading = Literal["gradient", "aggregate"]
"""Reading of the neuron sensitivity."""

ScoreName = Literal["energy", "msp", "max_logit", "entropy", "gen"]
"""Scores that are read off logits."""

Precision = Literal["float32", "float64"]
"""Precision of products."""

CalibratedBy = Literal["predicted"]
"""What calibration samples are grouped by: the class that the original head predicts."""

RANK_TIMEOUT = 1800.0
"""Seconds that a rank waits for the others."""

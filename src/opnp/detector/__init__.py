"""The detector: fitting, scoring and verdicts, files."""

from opnp.detector.fit_pass import Checkpoint
from opnp.detector.opnp import OPNP
from opnp.export import CompactHead
from opnp.fitted import CalibrationGroup, Explanation, Ratios, Settings, Tuning, Verdict

__all__ = [
    "OPNP",
    "CalibrationGroup",
    "Checkpoint",
    "CompactHead",
    "Explanation",
    "Ratios",
    "Settings",
    "Tuning",
    "Verdict",
]

"""The detector: fitting, scoring and verdicts, files."""

from opnp.detector.checkpoint import Checkpoint
from opnp.detector.compact import CompactHead
from opnp.detector.opnp import OPNP
from opnp.fitted import Explanation, Ratios, Settings, Tuning, Verdict

__all__ = ["OPNP", "Checkpoint", "CompactHead", "Explanation", "Ratios", "Settings", "Tuning", "Verdict"]

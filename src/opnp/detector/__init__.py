"""The detector, its settings and its verdicts."""

from opnp.detector.checkpoint import Checkpoint
from opnp.detector.compact import CompactHead
from opnp.detector.criterion import Trial
from opnp.detector.opnp import OPNP
from opnp.detector.ratios import Ratios
from opnp.detector.settings import Settings
from opnp.detector.tuning import Tuning
from opnp.detector.verdicts import Verdict

__all__ = ["OPNP", "Checkpoint", "CompactHead", "Ratios", "Settings", "Trial", "Tuning", "Verdict"]

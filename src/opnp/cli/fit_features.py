"""``opnp fit --features``: the pass over cached features."""

from dataclasses import dataclass
from pathlib import Path

from opnp.cli.held_out import HeldOut
from opnp.cli.model_options import checked_device
from opnp.cli.output import progress_bar
from opnp.data import feature_part, open_features, read_head
from opnp.detector import OPNP, Checkpoint
from opnp.detector.blocks import BLOCK_ROWS
from opnp.distributed import Ranks, local_device, require_equal, together

__all__ = ["FeaturesForm"]


@dataclass(frozen=True, slots=True)
class FeaturesForm:
    """What the form with ``--features`` alone is told.

    Attributes:
        features: Features of training data.
        head: File of the head.
        device: Where to compute, or None for the CPU.
        batch_size: Rows a block, or None for the default.
        checkpoint: Where to write down how far the pass is, or None.

    """

    features: Path
    head: Path
    device: str | None
    batch_size: int | None
    checkpoint: Checkpoint | None

    def fit(self, detector: OPNP, ranks: Ranks, *, beside: HeldOut, is_quiet: bool) -> dict[str, object]:
        """Fit the detector with all ranks, and return facts of this form alone: none."""
        with together(ranks):
            training, classifier = open_features(self.features), read_head(self.head)
            place = local_device(checked_device(self.device) or "cpu")
            held_out = beside.opened(ranks, open_features)
            if held_out is not None:
                beside.require_enough(held_out.rows)
        require_equal(f"({training.rows}, {training.width})", ranks, what="features of shape")
        detector.fit_features(
            feature_part(training, *ranks.part(training.rows)),
            weight=classifier.weight.to(place),
            bias=None if classifier.bias is None else classifier.bias.to(place),
            validation=held_out,
            keep=beside.keep,
            batch_size=BLOCK_ROWS if self.batch_size is None else self.batch_size,
            checkpoint=self.checkpoint,
            distributed=not ranks.is_alone,
            progress=progress_bar("fitting", is_quiet=is_quiet),
        )
        return {}

"""What a fit calibrates on, beside its training data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from opnp.core.conformal import flagged_rank, minimum_samples
from opnp.distributed import Ranks

__all__ = ["HeldOut"]

_Opened = TypeVar("_Opened")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out samples as they were named.

    Attributes:
        validation: ID samples, or None.
        keep: Share of ID to keep.

    Raises:
        OptionError: If `keep` lies outside (0, 1).

    """

    validation: Path | None
    keep: float

    def __post_init__(self) -> None:
        """Check the share, before anything is read."""
        minimum_samples(keep=self.keep)

    def opened(self, ranks: Ranks, read: Callable[[Path], _Opened]) -> _Opened | None:
        """Return them as `read` does; None where the first rank alone needs them, perhaps on a machine of its own."""
        return None if self.validation is None or not ranks.is_first else read(self.validation)

    def require_enough(self, samples: int) -> None:
        """Raise if these are too few to calibrate on, before a model is run for them.

        Raises:
            CalibrationError: If so.

        """
        flagged_rank(samples, keep=self.keep)

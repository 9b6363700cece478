"""The random numbers of a monitor: three sequences that a seed names, each number found by its index."""

from torch import Tensor

from opnp.core.online_p_values import numbered_uniforms
from opnp.errors import InputTypeError, OptionError

__all__ = ["StreamUniforms"]

_SEQUENCES = 3


class StreamUniforms:
    """Uniform numbers for the ties of the calibration, the ties of the stream, and the ranks of the stream.

    Args:
        seed: A whole number of at least 0.

    Raises:
        InputTypeError: If `seed` is no whole number.
        OptionError: If it is negative.

    """

    def __init__(self, seed: int) -> None:
        """Store the seed."""
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputTypeError(f"`seed` must be a whole number, got {type(seed).__name__}.")
        if seed < 0:
            raise OptionError(f"`seed` must be at least 0, got {seed}.")
        self.seed = seed

    def calibration_ties(self, count: int) -> Tensor:
        """Return what orders equal calibration scores, shape ``(count,)``, float64."""
        return numbered_uniforms(0, count, seed=_SEQUENCES * self.seed)

    def stream_ties(self, count: int, *, start: int) -> Tensor:
        """Return what orders scores of the stream among equal calibration scores, from the sample `start` on."""
        return numbered_uniforms(start, count, seed=_SEQUENCES * self.seed + 1)

    def ranks(self, count: int, *, start: int) -> Tensor:
        """Return what places scores of the stream among equal ones before them, from the sample `start` on."""
        return numbered_uniforms(start, count, seed=_SEQUENCES * self.seed + 2)

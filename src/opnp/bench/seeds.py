"""Seeds that torch takes."""

from opnp.errors import OptionError

__all__ = ["require_seed"]

_END = 2**63


def require_seed(seed: int) -> None:
    """Raise if a number is no seed of 63 bits.

    Raises:
        OptionError: If so.

    Example:
        >>> require_seed(7)

    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _END:
        digits = len(hex(seed)) if isinstance(seed, int) else 0
        shown = repr(seed) if digits < 40 else f"a number of {digits} hexadecimal digits"
        raise OptionError(f"`seed` must lie in 0 to 2^63 - 1, got {shown}.")

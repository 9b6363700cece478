"""The four pruning ratios of the paper."""

from dataclasses import asdict, dataclass
from fractions import Fraction

from opnp.core.checks import checked_fraction
from opnp.errors import OptionError, RatioError

__all__ = ["Ratios"]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Shares of the last layer's weights and neurons to remove, each a fraction in [0, 1).

    Attributes:
        w_min: Share of the weights with the smallest sensitivity (rho_w_min).
        w_max: Share of the weights with the largest sensitivity (rho_w_max).
        o_min: Share of the neurons with the smallest sensitivity (rho_o_min).
        o_max: Share of the neurons with the largest sensitivity (rho_o_max).

    Raises:
        RatioError: If a ratio lies outside [0, 1), or two of one layer sum to 1 or more.

    Example:
        >>> Ratios(w_min=0.3)
        Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0)

    References:
        Chen et al., NeurIPS 2023: OPP uses the first two, ONP the last two, OPNP all four.

    """

    w_min: float = 0.0
    w_max: float = 0.0
    o_min: float = 0.0
    o_max: float = 0.0

    def __post_init__(self) -> None:
        """Check each ratio, and each pair."""
        for name, value in asdict(self).items():
            try:
                object.__setattr__(self, name, checked_fraction(value, name=name, is_zero_allowed=True))
            except OptionError as error:
                raise RatioError(str(error)) from None
        for lowest, highest in (("w_min", "w_max"), ("o_min", "o_max")):
            low, high = getattr(self, lowest), getattr(self, highest)
            if Fraction(str(low)) + Fraction(str(high)) >= 1:
                raise RatioError(
                    f"`{lowest}` = {low:g} and `{highest}` = {high:g} sum to {low + high:g}: at least one entry must "
                    f"be left. Lower one of them.",
                )

"""How a test tells the table of ``make test-long`` what it tried, and how often."""

from typing import Protocol

__all__ = ["AREAS", "Tried"]

# Rows of the table stand in this order.
AREAS = ("guarantees", "numerics", "files", "inputs", "faults", "models", "contract", "serving")


class Tried(Protocol):
    """The fixture ``tried``; a test that fails afterwards counts as one failure of what it told."""

    def __call__(self, area: str, what: str, times: int = 1) -> None:
        """Tell that ``what``, of one of the ``AREAS``, is tried ``times`` times; equal rows add up."""

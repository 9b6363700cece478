"""How much a service takes on, of one request and at once."""

from dataclasses import dataclass, fields

from opnp.errors import OptionError

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a service. How many send at once and how slowly, a server or a proxy before it bounds.

    Attributes:
        max_bytes: Bytes of a request's body.
        max_pixels: Pixels of an image, counted before it is decoded.
        max_batch: Inputs that the model is run on at once. With 1, answers are those of the library on single inputs to
            the bit; else a score of float32 may differ in its last digits, as in the library itself.
        max_inputs: Inputs of one request.
        max_wait: Seconds that a batch waits for requests that are being decoded, at most.
        max_requests: Requests in work at once; more are told to come back.
        threads: Threads that decode images; texts are made ready on one.

    Raises:
        OptionError: If a value is out of range.

    Example:
        >>> Limits(max_batch=8).max_batch
        8

    """

    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    max_batch: int = 32
    max_inputs: int = 64
    max_wait: float = 0.005
    max_requests: int = 256
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name == "max_wait" else 1
            if not lowest <= value < float("inf"):
                raise OptionError(f"`{field.name}` must be finite and at least {lowest}, got {value!r}.")


DEFAULT_LIMITS = Limits()
"""The limits where nothing else is asked for."""

"""How much a service takes on, of one request and at once, and what is said of a request that goes beyond."""

from dataclasses import dataclass, fields

from opnp.errors import OptionError

__all__ = ["DEFAULT_LIMITS", "Limits", "Refusal"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a service. How many send at once, a server or a proxy before it bounds.

    Attributes:
        max_bytes: Bytes of a request's body.
        max_pixels: Pixels of an image, counted before it is decoded.
        max_batch: Inputs that the model is run on at once. With 1, answers are those of the library on single inputs to
            the bit; else a score of float32 may differ in its last digits, as in the library itself.
        max_inputs: Inputs of one request.
        max_wait: Seconds that a batch waits for requests that are being decoded, at most.
        max_requests: Requests in work at once; more are told to come back.
        read_seconds: Seconds that the body of a request may take to arrive.
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
    read_seconds: float = 10.0
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


class Refusal(Exception):  # noqa: N818  # an answer to a request, and no error of the service
    """A request is refused: status and reason of the answer.

    Args:
        status: Status of HTTP, 400 to 599.
        reason: What is wrong with the request, and how to mend it.
        headers: Headers of the answer.

    """

    def __init__(self, status: int, reason: str, *, headers: dict[str, str] | None = None) -> None:
        """Keep the arguments."""
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers

"""How much a service takes on, and what is said of a request that goes beyond."""

from opnp.values.serving import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_LIMITS", "Limits", "Refusal"]


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

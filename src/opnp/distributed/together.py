"""One error for all: a step that fails on one rank fails on every rank, with a message that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from opnp.distributed.ranks import Ranks
from opnp.distributed.reduction import gathered_bytes, in_contact
from opnp.errors import DistributedError

__all__ = ["require_equal", "together"]

_FINE = b""


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Run a block on every rank, and leave it on all of them or on none.

    The ranks wait for each other at the end. An error of one is raised there as it is, and by the others as a
    `DistributedError` that names the rank. Nothing inside the block may wait for another rank.

    Args:
        ranks: This process's place.

    Raises:
        DistributedError: If the block failed on another rank, or another rank is lost.

    """
    try:
        yield
    except Exception as error:
        _told(f"{type(error).__name__}: {error}".encode(errors="backslashreplace"), ranks, is_failing=True)
        raise
    for rank, text in enumerate(_told(_FINE, ranks)):
        if text != _FINE:
            _, _, reason = text.decode().partition(": ")
            raise DistributedError(f"rank {rank} of {ranks.world} failed: {reason}")


def require_equal(value: str, ranks: Ranks, *, what: str) -> None:
    """Raise on every rank if a text, such as a digest, is not the same on all of them.

    Raises:
        DistributedError: If a rank has another one than rank 0; the message names it.

    """
    values = gathered_bytes(value.encode(), ranks)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise DistributedError(
                f"rank {rank} has {what} {other.decode()}, and rank 0 {values[0].decode()}: every rank must "
                f"have the same."
            )


def _told(text: bytes, ranks: Ranks, *, is_failing: bool = False) -> list[bytes]:
    """Tell all ranks how this one fares, and return how they do."""
    if ranks.is_alone:
        return [text]
    try:
        if distributed.get_backend() == "gloo":  # says which ranks did not come; NCCL has no such thing
            with in_contact(ranks, "waiting for the others"):
                distributed.monitored_barrier(timeout=_patience(), wait_all_ranks=True)
        return gathered_bytes(text, ranks)
    except DistributedError:
        if is_failing:  # its own error says more than that others are gone too
            return []
        raise


def _patience() -> timedelta:
    """Return how long the process group waits; without it the barrier would take the default of torch."""
    group = distributed.distributed_c10d._get_default_group()  # noqa: SLF001  # no public way to a group's timeout
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)  # noqa: SLF001  # as above
    found = getattr(options, "_timeout", None)
    return found if isinstance(found, timedelta) else distributed.distributed_c10d.default_pg_timeout

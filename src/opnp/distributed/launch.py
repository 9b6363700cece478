"""Processes that torchrun started: joined for the time of a command, and parted afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from opnp.distributed.ranks import Ranks
from opnp.errors import DistributedError, OptionError

__all__ = ["launched", "local_device"]

_LONGEST = 10**9
"""Seconds, thirty years: what the clocks of the backends hold."""

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def launched(*, device: str = "cpu", timeout: float = 1800) -> Iterator[Ranks]:
    """Join the processes that torchrun started, for the time of the block; a process of its own is alone.

    The backend is NCCL where `device` is CUDA, else gloo. An open process group is used as it is.

    Args:
        device: Where the ranks compute.
        timeout: Seconds that a rank waits for another before it gives up.

    Yields:
        This process's place.

    Raises:
        OptionError: If `timeout` is not positive, or beyond 1e9.
        DistributedError: If the ranks do not find each other.

    """
    if not 0 < timeout <= _LONGEST:
        raise OptionError(f"`timeout` must be a positive number of seconds, at most {_LONGEST}, got {timeout!r}.")
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks.joined()
        return
    if not all(os.environ.get(name) for name in _NAMES) or os.environ["WORLD_SIZE"] == "1":
        yield Ranks()
        return
    target = torch.device(local_device(device))
    is_cuda = target.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(target)
    try:
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo", timeout=timedelta(seconds=timeout), device_id=target if is_cuda else None
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"Rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error}).",
        ) from error
    yield Ranks.joined()
    distributed.destroy_process_group()  # after an error the process ends: NCCL would wait here for the others


def local_device(device: str) -> str:
    """Return the device of this rank: ``cuda`` is the one of its number on this machine.

    Raises:
        OptionError: If torch has no such device here.

    Example:
        >>> local_device("cpu")
        'cpu'

    """
    local = os.environ.get("LOCAL_RANK")
    chosen = f"cuda:{local}" if device == "cuda" and local is not None else device
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        raise OptionError(f"`device` must be one that torch finds here, got {chosen!r} ({error}).") from error
    return chosen

"""Several processes as one: who has which rows, sums over all in a fixed order, and one error for all.

Sums are taken by every rank for itself, over the parts of all ranks in rank order. A plain all-reduce leaves the order
to the backend, and with it the last bits.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import numpy as np
import torch
from torch import Tensor, distributed

from opnp.errors import DistributedError, OptionError
from opnp.values.settings import RANK_TIMEOUT

__all__ = [
    "Ranks",
    "gathered",
    "gathered_bytes",
    "launched",
    "local_device",
    "require_equal",
    "row_part",
    "sent_by_first",
    "summed",
    "together",
]

_LONGEST = 10**9
"""Seconds, thirty years: what the clocks of the backends hold."""

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = re.compile(r"(?:Ranks? |from rank )([\d, ]+)(?: failed to pass|\.)")
_ENTRIES = 1 << 23
"""Entries received at once, of all ranks together, so that memory does not grow with their number."""

_FINE = b""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those of a run.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.

    Example:
        >>> Ranks().is_first, Ranks(rank=1, world=2).part(5)
        (True, (2, 5))

    """

    rank: int = 0
    world: int = 1

    @classmethod
    def joined(cls) -> Self:
        """Return this process's place in the default process group of torch.

        Raises:
            OptionError: If there is no process group.

        """
        if not (distributed.is_available() and distributed.is_initialized()):
            raise OptionError(
                "`distributed=True` needs a process group: call `torch.distributed.init_process_group(...)` in every "
                "process first, as a script under torchrun does.",
            )
        return cls(rank=distributed.get_rank(), world=distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    @property
    def device(self) -> torch.device:
        """Where tensors must lie to be sent: the accelerator for NCCL, the CPU for gloo."""
        if not self.is_alone and distributed.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def part(self, rows: int) -> tuple[int, int]:
        """Return (start, stop) of the rows that are this rank's own, of `rows` in all."""
        return row_part(rows, rank=self.rank, world=self.world)

    def __str__(self) -> str:
        """Return the place in words."""
        return f"rank {self.rank} of {self.world}"


def row_part(rows: int, *, rank: int, world: int) -> tuple[int, int]:
    """Return (start, stop) of the rows of one rank: contiguous, in rank order, every row in exactly one part.

    Parts differ by one row at most; with fewer rows than ranks some have none. Nothing is padded, nothing doubled.

    Args:
        rows: Number of rows of the whole.
        rank: Number of the part, from 0.
        world: Number of parts.

    Raises:
        OptionError: If there is no such part.

    Example:
        >>> [row_part(5, rank=rank, world=3) for rank in range(3)]
        [(0, 1), (1, 3), (3, 5)]

    """
    if rows < 0 or not 0 <= rank < world:
        raise OptionError(f"`rank` must lie in 0 to {world - 1} and `rows` be positive, got {rank} and {rows}.")
    return rank * rows // world, (rank + 1) * rows // world


@contextmanager
def launched(*, device: str = "cpu", timeout: float = RANK_TIMEOUT) -> Iterator[Ranks]:
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


def summed(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return the sums over all ranks of tensors with the same names, shapes and dtypes on each: the same bits on all.

    Args:
        tensors: Tensors by name: an additive state.
        ranks: This process's place.

    Returns:
        New tensors on the devices of those given; of a process that is alone, the given ones.

    Raises:
        DistributedError: If another rank is lost.

    """
    if ranks.is_alone:
        return dict(tensors)
    sums = {}
    for name in sorted(tensors):
        total = torch.empty_like(tensors[name], memory_format=torch.contiguous_format)
        own, flat = tensors[name].detach().reshape(-1), total.view(-1)
        size = _piece(ranks)
        for start in range(0, len(own), size):
            parts = _of_all(own[start : start + size], ranks, f"adding up `{name}`")
            for other in parts[1:]:
                parts[0] += other
            flat[start : start + size] = parts[0].to(total.device)
        sums[name] = total
    return sums


def gathered(tensor: Tensor, ranks: Ranks) -> list[Tensor]:
    """Return the tensors of all ranks, in rank order, whatever their shapes and dtypes.

    Args:
        tensor: This rank's tensor, of any shape, empty too.
        ranks: This process's place.

    Returns:
        One tensor a rank, on the device of the one given.

    Raises:
        DistributedError: If another rank is lost.

    """
    if ranks.is_alone:
        return [tensor]
    plain = tensor.detach().contiguous()
    layout = json.dumps({"dtype": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape)})
    layouts = [json.loads(text) for text in gathered_bytes(layout.encode(), ranks)]
    contents = _gathered(plain.reshape(-1).view(torch.uint8), ranks)
    return [
        content.to(tensor.device).view(getattr(torch, layout["dtype"])).reshape(layout["shape"])
        for content, layout in zip(contents, layouts, strict=True)
    ]


def gathered_bytes(content: bytes, ranks: Ranks) -> list[bytes]:
    """Return what all ranks have to say, in rank order."""
    if ranks.is_alone:
        return [content]
    own = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
    return [part.numpy().tobytes() for part in _gathered(own, ranks)]


def sent_by_first(content: bytes, ranks: Ranks) -> bytes:
    """Return what rank 0 has to say; what the others pass is not looked at."""
    return gathered_bytes(content if ranks.is_first else b"", ranks)[0]


@contextmanager
def in_contact(ranks: Ranks, doing: str) -> Iterator[None]:
    """Turn what torch says when a rank is lost into one message.

    Raises:
        DistributedError: If another rank is lost.

    """
    try:
        yield
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        named = _LOST.search(reason)
        lost = f"rank {named[1].strip()}" if named else "another rank"
        raise DistributedError(
            f"{ranks} lost {lost} while {doing}: it died, or took longer than the time allowed. What ended it stands "
            f"in its own output. torch says: {reason[:200]}"
        ) from error


def _gathered(own: Tensor, ranks: Ranks) -> list[Tensor]:
    """Return the bytes of all ranks, each of its own length."""
    length = torch.tensor([len(own)], dtype=torch.int64, device="cpu")
    sizes = [int(size) for size in _of_all(length, ranks, "gathering lengths")]
    contents = [torch.empty(size, dtype=torch.uint8, device="cpu") for size in sizes]
    step = _piece(ranks)
    for start in range(0, max(sizes), step):
        padded = torch.zeros(min(step, max(sizes) - start), dtype=torch.uint8, device="cpu")
        piece = own[start : start + step]
        padded[: len(piece)] = piece
        for content, part in zip(contents, _of_all(padded, ranks, "gathering"), strict=True):
            content[start : start + step] = part[: max(0, len(content) - start)]
    return contents


def _of_all(own: Tensor, ranks: Ranks, doing: str) -> list[Tensor]:
    """Return the tensors of all ranks, of one length, where they are received."""
    sent = own.contiguous().to(ranks.device)
    parts = [torch.empty_like(sent) for _ in range(ranks.world)]
    with in_contact(ranks, doing):
        distributed.all_gather(parts, sent)
    return parts


def _piece(ranks: Ranks) -> int:
    """Return how many entries of each rank are sent at once."""
    return max(1024, _ENTRIES // ranks.world)


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

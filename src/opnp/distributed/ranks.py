"""Which process of how many this is, and which rows are its own."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import distributed

from opnp.errors import OptionError

__all__ = ["Ranks", "row_part"]


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

"""Checkpoints of a pass over cached features: the sums and the position, so that a killed run goes on where it was."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.distributed import Ranks
from opnp.errors import ArtifactError, CheckpointError, OptionError
from opnp.files import remove_parts

__all__ = ["Checkpoint", "Progressed", "read_checkpoint", "require_like", "write_checkpoint"]

FORMAT_VERSION = 2
_KIND = "fit checkpoint"
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where and how often a pass over cached features is written down.

    The file is written whole or not at all. A run that finds it goes on from it, if data, head, settings, block size,
    ranks and threads are the same; otherwise it is refused. What comes of the pass is the same, bit for bit, as if it
    had never been interrupted. Each rank of several has a file of its own, ``FILE.rank0`` and so on.

    Attributes:
        path: The file.
        every: Number of blocks of rows between two writings.

    Raises:
        OptionError: If `every` is no positive integer.

    Example:
        >>> Checkpoint("fit.checkpoint", every=4).file(Ranks(rank=1, world=2)).name
        'fit.checkpoint.rank1'

    """

    path: str | os.PathLike[str]
    every: int = 16

    def __post_init__(self) -> None:
        """Check the number."""
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise OptionError(f"`Checkpoint.every` must be a positive number of blocks, got {self.every!r}.")

    def file(self, ranks: Ranks) -> Path:
        """Return the file of one rank."""
        path = Path(self.path)
        return path if ranks.is_alone else path.with_name(f"{path.name}.rank{ranks.rank}")

    def remove(self, ranks: Ranks | None = None) -> None:
        """Remove the file, if there is one: the run is over, and its detector saved.

        Args:
            ranks: This process's place among ranks; None for a process of its own.

        """
        path = self.file(ranks or Ranks())
        path.unlink(missing_ok=True)
        remove_parts(path)


@dataclass(frozen=True, eq=False, slots=True)
class Progressed:
    """How far a pass has come.

    Attributes:
        blocks: Number of blocks that are in the sums.
        tensors: The sums and all else that the pass carries along, by name.

    """

    blocks: int
    tensors: Mapping[str, Tensor]


def write_checkpoint(checkpoint: Checkpoint, ranks: Ranks, *, run: Mapping[str, object], state: Progressed) -> None:
    """Write how far a run has come, in the place of what was written before.

    Args:
        checkpoint: Where.
        ranks: This process's place.
        run: What makes it this run and no other, JSON values by name.
        state: How far it has come.

    """
    write_artifact(
        checkpoint.file(ranks),
        kind=_KIND,
        format_version=FORMAT_VERSION,
        tensors=state.tensors,
        metadata={"run": dict(run), "blocks": state.blocks},
    )


def read_checkpoint(checkpoint: Checkpoint, ranks: Ranks, *, run: Mapping[str, object]) -> Progressed | None:
    """Return how far this very run has come, or None if nothing of it was written down.

    Args:
        checkpoint: Where.
        ranks: This process's place.
        run: What makes it this run and no other, JSON values by name.

    Raises:
        CheckpointError: If the file is damaged, no checkpoint, or one of another run; the message says what differs.

    """
    own = checkpoint.file(ranks)
    remove_parts(own)
    other = checkpoint.file(Ranks(world=2) if ranks.is_alone else Ranks())  # what a run of several, or of one, wrote
    found = next((path for path in (own, other) if path.exists()), None)
    if found is None:
        return None
    way_out = "Remove it to start over."
    try:
        tensors, metadata = read_artifact(found, kind=_KIND, format_version=FORMAT_VERSION)
    except (ArtifactError, OSError) as error:
        raise CheckpointError(
            f"{str(error).removesuffix(' Write it again.')} If it is a checkpoint, remove it to start over; if not, "
            f"give another file for the checkpoint."
        ) from error
    written, blocks = metadata.get("run"), metadata.get("blocks")
    if not isinstance(written, dict) or isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        raise CheckpointError(f"{found} lacks something that a checkpoint must hold. {way_out}")
    differing = [name for name in sorted({*run, *written}) if run.get(name) != written.get(name)]
    if differing:
        told = "; ".join(
            f"{name}: {_short(written.get(name))} there, {_short(run.get(name))} here" for name in differing
        )
        raise CheckpointError(
            f"{found} is a checkpoint of another run ({told}). Finish that run as it was begun, or remove the file to "
            f"start over."
        )
    return Progressed(blocks=blocks, tensors=tensors)


def require_like(found: Mapping[str, Tensor], pattern: Mapping[str, Tensor], *, path: str | os.PathLike[str]) -> None:
    """Raise unless a checkpoint's tensors have names, shapes and dtypes of those that the pass begins with.

    Raises:
        CheckpointError: If one is missing, is one too many, or has another layout.

    """
    layouts = [{name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (found, pattern)]
    if layouts[0] != layouts[1]:
        raise CheckpointError(f"{path} holds other sums than those of this run. Remove it to start over.")


def _short(value: object) -> str:
    """Return a value in words, a digest by its first digits."""
    text = str(value)[:_SHOWN]
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] if is_digest else text

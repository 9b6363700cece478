"""Batches of inputs, made here or by worker processes ahead of time: the same ones in the same order."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from opnp.errors import DataFileError, OpnpError, OptionError, WorkerError

__all__ = ["InputBatches", "is_lost_worker", "lost_worker_text"]

_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")

_MOST_WORKERS = 1024
"""Processes: more would take the memory of the machine before the first input is read."""


class _Inputs(Protocol):
    """Inputs that can be read and stacked."""

    def read(self, row: int) -> object: ...

    def stacked(self, rows: Sequence[int], contents: Sequence[Any]) -> object: ...

    def skip(self, row: int, reason: str) -> None: ...

    def require_some(self) -> None: ...


@dataclass(frozen=True, eq=False, slots=True)
class InputBatches:
    """Batches of some inputs of a set, in the order of the rows; torch's random state is left alone.

    A batch is ``(inputs, labels)``, or the inputs alone where there are no labels. What cannot be read is left out of
    its batch, and the set is told; a batch of which nothing can be read is left out.

    Attributes:
        inputs: The set.
        rows: Which of its inputs.
        batch_size: Inputs a batch; the last batch, and those with unreadable inputs, have fewer.
        workers: Processes that make the inputs ahead of time, no more than there are batches; 0 to make them here, when
            they are asked for.
        is_pinned: Whether batches lie in page-locked memory, which a CUDA device copies from without waiting.

    Raises:
        OptionError: If `batch_size` is no positive integer, or `workers` does not lie in 0 to 1024.

    """

    inputs: _Inputs
    rows: Sequence[int]
    batch_size: int
    workers: int = 0
    is_pinned: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise OptionError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if not 0 <= self.workers <= _MOST_WORKERS:
            raise OptionError(
                f"`workers` must be 0 or the number of processes that read inputs, at most {_MOST_WORKERS}, got "
                f"{self.workers}.",
            )

    def __len__(self) -> int:
        """Return the number of batches, those of which nothing can be read counted too."""
        return (len(self.rows) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            OpnpError: As the set raises it, from whichever process.
            WorkerError: If one of these processes died.

        """
        loader: DataLoader[object] = DataLoader(
            _Told(self.inputs),
            batch_size=self.batch_size,
            sampler=self.rows,
            num_workers=min(self.workers, len(self)),
            pin_memory=self.is_pinned,
            collate_fn=_Stacked(self.inputs),
            generator=torch.Generator(),
        )
        for content, unreadable in self._received(loader):
            for row, reason in unreadable:
                self.inputs.skip(row, reason)
            if isinstance(content, OpnpError):
                raise content
            if content is not None:  # pinning makes lists of tuples
                yield tuple(content) if isinstance(content, list) else content
        self.inputs.require_some()

    def _received(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield what the loader yields; that a worker died may be seen first in what it should have sent."""
        try:
            yield from loader
        except (ConnectionError, EOFError, RuntimeError) as error:
            if self.workers == 0 or not (isinstance(error, OSError | EOFError) or is_lost_worker(error)):
                raise
            raise WorkerError(lost_worker_text(error)) from error


def is_lost_worker(error: BaseException) -> bool:
    """Return whether torch says that a worker of a loader died; it says so wherever the main process is just then."""
    return isinstance(error, RuntimeError) and _LOST_WORKER.search(str(error)) is not None


def lost_worker_text(error: BaseException) -> str:
    """Return what to say where a worker died."""
    reason = " ".join(str(error).split()).rstrip(".")
    return (
        f"A process that reads inputs ahead of time died ({reason}). Too little memory is the usual cause: give fewer "
        f"`--workers`, or a smaller `--batch-size`."
    )


class _Told(Dataset[object]):
    """Rows with what was read; an error of opnp stands in the place of its input, as torch would wrap a worker's."""

    def __init__(self, inputs: _Inputs) -> None:
        self.inputs = inputs

    def __getitem__(self, row: int) -> tuple[int, object]:
        try:
            return row, self.inputs.read(row)
        except OpnpError as error:
            return row, error


@dataclass(frozen=True, slots=True)
class _Stacked:
    """Makes of rows with what was read a batch, or an error in its place, and what could not be read."""

    inputs: _Inputs

    def __call__(self, items: Sequence[tuple[int, object]]) -> tuple[object, list[tuple[int, str]]]:
        unreadable = [(row, str(item)) for row, item in items if isinstance(item, DataFileError)]
        failed = next((item for _, item in items if _is_failure(item)), None)
        read = [(row, item) for row, item in items if not isinstance(item, OpnpError)]
        if failed is not None or not read:
            return failed, unreadable
        try:
            return self.inputs.stacked([row for row, _ in read], [item for _, item in read]), unreadable
        except OpnpError as error:
            return error, unreadable


def _is_failure(item: object) -> bool:
    """Return whether an item is an error that is not about this input alone."""
    return isinstance(item, OpnpError) and not isinstance(item, DataFileError)

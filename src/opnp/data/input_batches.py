"""Batches of inputs, made here or by worker processes ahead of time: the same ones in the same order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from opnp.errors import DataFileError, OpnpError, OptionError

__all__ = ["InputBatches"]


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
        workers: Processes that make the inputs ahead of time; 0 to make them here, when they are asked for.
        is_pinned: Whether batches lie in page-locked memory, which a CUDA device copies from without waiting.

    Raises:
        OptionError: If `batch_size` is below 1, or `workers` below 0.

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
        if self.workers < 0:
            raise OptionError(f"`workers` must be 0 or the number of processes that read inputs, got {self.workers}.")

    def __len__(self) -> int:
        """Return the number of batches, those of which nothing can be read counted too."""
        return (len(self.rows) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            OpnpError: As the set raises it, from whichever process.

        """
        loader: DataLoader[object] = DataLoader(
            _Told(self.inputs),
            batch_size=self.batch_size,
            sampler=self.rows,
            num_workers=self.workers,
            pin_memory=self.is_pinned,
            collate_fn=_Stacked(self.inputs),
            generator=torch.Generator(),
        )
        for content, unreadable in loader:
            for row, reason in unreadable:
                self.inputs.skip(row, reason)
            if isinstance(content, OpnpError):
                raise content
            if content is not None:  # pinning makes lists of tuples
                yield tuple(content) if isinstance(content, list) else content
        self.inputs.require_some()


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

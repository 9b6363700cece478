"""Batches of images, made here or by worker processes ahead of time: the same ones in the same order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from opnp.errors import OpnpError, OptionError

__all__ = ["ImageBatches"]


@dataclass(frozen=True, eq=False, slots=True)
class ImageBatches:
    """Batches of some rows of a data set of images, in the order of the rows; torch's random state is left alone.

    Attributes:
        images: The data set.
        rows: Which of its items.
        batch_size: Items a batch; the last batch may have fewer.
        workers: Processes that make the items ahead of time; 0 to make them here, when they are asked for.
        is_pinned: Whether batches lie in page-locked memory, which a CUDA device copies from without waiting.

    Raises:
        OptionError: If `batch_size` is below 1, or `workers` below 0.

    """

    images: Dataset[object]
    rows: range
    batch_size: int
    workers: int = 0
    is_pinned: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise OptionError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if self.workers < 0:
            raise OptionError(f"`workers` must be 0 or the number of processes that read images, got {self.workers}.")

    def __len__(self) -> int:
        """Return the number of batches."""
        return (len(self.rows) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            OpnpError: As the data set raises it, from whichever process.

        """
        loader: DataLoader[object] = DataLoader(
            _Told(self.images),
            batch_size=self.batch_size,
            sampler=self.rows,
            num_workers=self.workers,
            pin_memory=self.is_pinned,
            collate_fn=_collated,
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, OpnpError):
                raise batch
            yield batch


class _Told(Dataset[object]):
    """Items of a data set; an error of opnp stands in the place of its item, as torch would wrap one of a worker."""

    def __init__(self, images: Dataset[object]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> object:
        try:
            return self.images[index]
        except OpnpError as error:
            return error


def _collated(items: Sequence[object]) -> object:
    failed = next((item for item in items if isinstance(item, OpnpError)), None)
    return default_collate(list(items)) if failed is None else failed

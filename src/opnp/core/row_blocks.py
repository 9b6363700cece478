"""A stream of batches cut anew into blocks of a fixed number of rows, so that nothing depends on the old cut."""

from collections.abc import Iterable, Iterator

from torch import Tensor

__all__ = ["row_blocks"]


def row_blocks(batches: Iterable[tuple[Tensor, Tensor]], *, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of a stream of pairs in blocks of `rows`, the last one shorter, in one buffer used again.

    A block that lies within a batch is a view of it; others are copied together, so that a batch may be overwritten
    once the next one is asked for. A change of dtype, width or device begins a new block.

    Args:
        batches: Pairs of matrices with as many rows as each other.
        rows: Rows of a block.

    Yields:
        Pairs that hold until the next one is asked for.

    Example:
        >>> import torch
        >>> numbers = torch.arange(5.0)[:, None]
        >>> [first.flatten().tolist() for first, _ in row_blocks([(numbers[:3],) * 2, (numbers[3:],) * 2], rows=2)]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]

    """
    buffers: tuple[Tensor, ...] = ()
    filled = 0
    for batch in batches:
        if not _fits(buffers, batch):
            if filled:
                yield buffers[0][:filled], buffers[1][:filled]
            buffers, filled = tuple(part.new_empty(rows, part.shape[1]) for part in batch), 0
        start = 0
        while start < len(batch[0]):
            stop = min(start + rows - filled, len(batch[0]))
            if stop - start == rows:
                yield batch[0][start:stop], batch[1][start:stop]
            else:
                for buffer, part in zip(buffers, batch, strict=True):
                    buffer[filled : filled + stop - start].copy_(part[start:stop])
                filled += stop - start
            if filled == rows:
                yield buffers[0], buffers[1]
                filled = 0
            start = stop
    if filled:
        yield buffers[0][:filled], buffers[1][:filled]


def _fits(buffers: tuple[Tensor, ...], batch: tuple[Tensor, Tensor]) -> bool:
    """Return whether rows of the batch can stand in the buffers as they are."""
    return bool(buffers) and all(
        (buffer.dtype, buffer.device, buffer.shape[1:]) == (part.dtype, part.device, part.shape[1:])
        for buffer, part in zip(buffers, batch, strict=True)
    )

"""Sums over samples of |sum over positions of gradient times input|, in chunks of bounded memory.

A pair holds gradients ``(batch, groups, outputs, ...)`` and inputs ``(batch, groups, inputs, ...)``, where the trailing
axes are positions; there is one pair for each time that a layer ran on the batch. Together they make each sample's
gradient for a matrix of weights, and its absolute value is summed over the samples.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from opnp.errors import OptionError

__all__ = ["Pair", "absolute_sum", "aligned", "checked_chunk"]

CHUNK_BYTES_ON_CPU = 2**22
"""What fits a processor's cache, 4 MiB: there 64 MiB at once take more than twice the time."""
CHUNK_BYTES_ELSEWHERE = 2**28
"""What keeps an accelerator busy: 256 MiB."""

Pair = tuple[Tensor, Tensor]

_ROWS = 1024
"""Samples multiplied at once where each is one vector: short enough for float32 to stay exact to 1e-6."""


def checked_chunk(chunk_bytes: int | None, device: torch.device) -> int:
    """Return `chunk_bytes` if it is a number above 0, what suits the device if it is None, else raise `OptionError`."""
    if chunk_bytes is None:
        return CHUNK_BYTES_ON_CPU if device.type == "cpu" else CHUNK_BYTES_ELSEWHERE
    if isinstance(chunk_bytes, bool) or not isinstance(chunk_bytes, int) or chunk_bytes < 1:
        raise OptionError(f"`chunk_bytes` must be a whole number of bytes above 0, got {chunk_bytes!r}.")
    return chunk_bytes


def absolute_sum(pairs: Sequence[Pair], *, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
    """Return the sum over samples of the absolute gradients, shape ``(groups, outputs, inputs)``, float64.

    Args:
        pairs: Gradients and inputs, once for each use of the layer; positions may differ between uses.
        dtype: What products are taken in.
        chunk_bytes: Bytes that the gradients of single samples, and the copies of what they are made of, may take at
            once. A copy of what one sample's are made of, and its gradients for one output, are held in any case.

    Returns:
        The sum, on the device of the pairs.

    Example:
        One sample at two positions, 1 x 1 and -1 x 3:

        >>> import torch
        >>> pair = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[1.0, 3.0]]]])
        >>> absolute_sum([pair], dtype=torch.float32, chunk_bytes=2**20).tolist()
        [[[2.0]]]

    """
    (samples, groups, outputs), inputs = pairs[0][0].shape[:3], pairs[0][1].shape[2]
    total = torch.zeros(groups, outputs, inputs, dtype=torch.float64, device=pairs[0][0].device)
    pairs = [pair for pair in pairs if pair[0].shape[3:].numel()]
    positions = sum(gradients.shape[3:].numel() for gradients, _ in pairs)
    with torch.autocast(total.device.type, enabled=False):  # the caller's would take half precision
        if positions == 0:
            return total
        if positions == 1:
            _add_outer_products(total, pairs[0], dtype=dtype)
            return total
        copies = groups * (outputs + inputs) * positions * dtype.itemsize
        one_output = groups * inputs * (dtype.itemsize + total.dtype.itemsize)
        rows = max(1, chunk_bytes // max(1, copies + outputs * one_output))
        width = max(1, outputs if rows > 1 else min(outputs, chunk_bytes // max(1, one_output)))
        for start, first in product(range(0, samples, rows), range(0, outputs, width)):
            block, columns = slice(start, start + rows), slice(first, first + width)
            part = [(gradients[block, :, columns], given[block]) for gradients, given in pairs]
            gradients = _gradients(part, dtype=dtype).abs_()
            total[:, columns].add_(gradients[0] if len(gradients) == 1 else gradients.to(total.dtype).sum(0))
    return total


def aligned(size: int, outputs: int, *, offset: int, stride: int) -> tuple[slice, slice]:
    """Return which of a number of outputs y have 0 <= y * stride + offset < size, and the inputs that those read.

    Example:
        A kernel of three on three pixels with padding 1: its first weight meets padding at the first output.

        >>> aligned(3, 3, offset=-1, stride=1)
        (slice(1, 3, None), slice(0, 2, 1))

    """
    first = max(0, -(offset // stride))
    end = min(outputs, -((offset - size) // stride))
    if end <= first:
        return slice(0), slice(0)
    return slice(first, end), slice(first * stride + offset, (end - 1) * stride + offset + 1, stride)


def _add_outer_products(total: Tensor, pair: Pair, *, dtype: torch.dtype) -> None:
    """Add the sum over samples of |gradient| |input|: with one position a sample the absolute value splits."""
    gradients, inputs = (tensor.flatten(3)[..., 0] for tensor in pair)
    for start in range(0, len(gradients), _ROWS):
        block = slice(start, start + _ROWS)
        left, right = gradients[block].to(dtype).abs(), inputs[block].to(dtype).abs()
        total.add_(left.permute(1, 2, 0) @ right.transpose(0, 1))


def _gradients(pairs: Sequence[Pair], *, dtype: torch.dtype) -> Tensor:
    """Return the gradients of single samples, shape (batch, groups, outputs, inputs)."""
    (left, right), *others = [
        (gradients.to(dtype).flatten(3).flatten(0, 1), inputs.to(dtype).flatten(3).flatten(0, 1).mT)
        for gradients, inputs in pairs
    ]
    result = left @ right
    for left, right in others:
        result.baddbmm_(left, right)
    return result.view(*pairs[0][0].shape[:2], *result.shape[1:])

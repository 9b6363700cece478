"""What ranks tell each other: sums in a fixed order, tensors of any length, and texts.

Sums are taken by every rank for itself, over the parts of all ranks in rank order. A plain all-reduce leaves the order
to the backend, and with it the last bits.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from opnp.distributed.ranks import Ranks
from opnp.errors import DistributedError

__all__ = ["gathered", "gathered_bytes", "in_contact", "sent_by_first", "summed"]

_NAMED = re.compile(r"(?:Ranks? |from rank )([\d, ]+)(?: failed to pass|\.)")
_ENTRIES = 1 << 23
"""Entries received at once, of all ranks together, so that memory does not grow with their number."""


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
            part = own[start : start + size].contiguous().to(ranks.device)
            parts = [torch.empty_like(part) for _ in range(ranks.world)]
            with in_contact(ranks, f"adding up `{name}`"):
                distributed.all_gather(parts, part)
            entries = parts[0]
            for other in parts[1:]:
                entries += other
            flat[start : start + size] = entries.to(total.device)
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
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return [bytes(part.cpu().numpy().tobytes()) for part in _gathered(own, ranks)]


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
        named = _NAMED.search(reason)
        lost = f"rank {named[1].strip()}" if named else "another rank"
        raise DistributedError(
            f"{ranks} lost {lost} while {doing}: it died, or took longer than the time allowed. What ended it stands "
            f"in its own output. torch says: {reason[:200]}"
        ) from error


def _gathered(own: Tensor, ranks: Ranks) -> list[Tensor]:
    """Return the bytes of all ranks, each of its own length."""
    length = torch.tensor([len(own)], dtype=torch.int64, device=ranks.device)
    lengths = [torch.empty_like(length) for _ in range(ranks.world)]
    with in_contact(ranks, "gathering lengths"):
        distributed.all_gather(lengths, length)
    sizes = [int(size) for size in lengths]
    contents = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    step = _piece(ranks)
    for start in range(0, max(sizes), step):
        padded = torch.zeros(min(step, max(sizes) - start), dtype=torch.uint8, device=ranks.device)
        piece = own[start : start + step]
        padded[: len(piece)] = piece.to(ranks.device)
        parts = [torch.empty_like(padded) for _ in range(ranks.world)]
        with in_contact(ranks, "gathering"):
            distributed.all_gather(parts, padded)
        for content, part in zip(contents, parts, strict=True):
            content[start : start + step] = part.cpu()[: max(0, len(content) - start)]
    return contents


def _piece(ranks: Ranks) -> int:
    """Return how many entries of each rank are sent at once."""
    return max(1024, _ENTRIES // ranks.world)

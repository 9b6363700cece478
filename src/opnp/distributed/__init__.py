"""Several processes as one: who has which rows, sums over all, and one error for all."""

from opnp.distributed.launch import launched, local_device
from opnp.distributed.ranks import Ranks, row_part
from opnp.distributed.reduction import gathered, gathered_bytes, sent_by_first, summed
from opnp.distributed.together import require_equal, together

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

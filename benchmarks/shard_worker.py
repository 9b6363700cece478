"""One fit on feature shards, alone or as one of the ranks that torchrun starts; rank 0 prints what it took as JSON.

python -m benchmarks.shard_worker SHARDS HEAD
"""

import json
import sys
import time

import torch

from benchmarks.anonymous_memory import anonymous_memory
from opnp import OPNP, Ratios
from opnp.data import feature_part, open_features, read_head
from opnp.distributed import launched

__all__ = ["main"]


def main() -> None:
    """Fit, and print seconds of the clock between two meetings of the ranks, and the highest anonymous memory."""
    torch.set_num_threads(1)
    shards, head = open_features(sys.argv[1]), read_head(sys.argv[2])
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None)
    with launched() as ranks:
        part = feature_part(shards, *ranks.part(shards.rows))
        _meet(is_alone=ranks.is_alone)
        start = time.perf_counter()
        _, memory = anonymous_memory(
            lambda: detector.fit_features(part, weight=head.weight, bias=head.bias, distributed=not ranks.is_alone)
        )
        _meet(is_alone=ranks.is_alone)
        if ranks.is_first:
            taken = {"seconds": time.perf_counter() - start, "peak": None if memory is None else memory.peak}
            sys.stdout.write(json.dumps(taken) + "\n")


def _meet(*, is_alone: bool) -> None:
    if not is_alone:
        torch.distributed.barrier()


if __name__ == "__main__":
    main()

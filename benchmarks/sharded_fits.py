"""Fits on feature shards in processes of their own: memory against the number of samples, and two ranks against one."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import Outcome
from benchmarks.random_shards import write_random_shards

__all__ = ["sharded_fits"]

_IMAGENET = 1_281_167
_CLASSES, _FEATURES = 1000, 2048


def sharded_fits(*, repeats: int) -> Iterator[Outcome]:
    """Yield memory on a sixteenth and an eighth of ImageNet-1k's features, and the time of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        sixteenth, eighth = (_shards(Path(folder) / str(share), _IMAGENET // share) for share in (16, 8))
        runs = [[_taken(files, ranks=1) for files in (sixteenth, eighth)] for _ in range(repeats)]
        if all(run["peak"] is not None for pair in runs for run in pair):
            shape = f"C {_CLASSES}, D {_FEATURES}, float16 shards"
            peaks = tuple(large["peak"] / 1e9 for _, large in runs)
            yield Outcome(f"anonymous memory of a fit on 1/8 of ImageNet-1k, {shape}", peaks, 1.0, unit=" GB")
            ratios = tuple(large["peak"] / small["peak"] for small, large in runs)
            yield Outcome("the same on 1/8 against on 1/16", ratios, 1.1)
        values = tuple(_taken(sixteenth, ranks=2)["seconds"] / one["seconds"] for one, _ in runs)
        yield Outcome("two gloo processes of one thread against one, start-up apart", values, 0.65)


def _shards(folder: Path, rows: int) -> tuple[Path, Path]:
    folder.mkdir()
    return write_random_shards(folder, rows=rows, features=_FEATURES, classes=_CLASSES)


def _taken(files: tuple[Path, Path], *, ranks: int) -> dict[str, Any]:
    """Return what a fit took by its own account."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "benchmarks.shard_worker", *map(str, files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603  # ourselves
    if run.returncode:
        raise RuntimeError(run.stderr)
    taken: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return taken

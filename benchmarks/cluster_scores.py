"""Scores of two million rows by two workers of Ray against one process, each of one thread; and that they are equal."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
import torch
from pyarrow import dataset, parquet

from benchmarks.measuring import Outcome
from benchmarks.random_shards import write_random_shards
from opnp.cli.app import app

__all__ = ["cluster_scores"]

_ROWS, _FEATURES, _CLASSES = 2_000_000, 256, 100
_FEW = 20_000
"""Rows that start everything up: workers, imports, the first products."""


def cluster_scores(*, repeats: int, rows: int = _ROWS) -> Iterator[Outcome]:
    """Yield the time of two workers against one process, start-up apart.

    Raises:
        RuntimeError: If the two tables differ in any bit.

    """
    command = [sys.executable, "-m", "benchmarks.cluster_scores", str(repeats), str(rows)]
    # Ray runs its workers at low priority, behind whatever else a machine does; here both sides have the same.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603  # ourselves
    if run.returncode:
        raise RuntimeError(run.stderr)
    *pairs, notes = run.stdout.splitlines()
    values = tuple(float(pair) for pair in pairs)
    name = f"two workers of Ray of one thread against one process, {rows:,} rows of features scored, start-up apart"
    yield Outcome(name, values, 0.65, notes=notes)


def _compared(repeats: int, rows: int) -> None:
    """Print the ratio of each repeat, and at the end what it is made of."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in {"few": _FEW, "many": rows}.items():
            (folder / part).mkdir()
            write_random_shards(folder / part, rows=count, features=_FEATURES, classes=_CLASSES)
        few, many, detector = folder / "few" / "shards", folder / "many" / "shards", folder / "detector.safetensors"
        head = folder / "few" / "head.safetensors"
        _opnp("fit", "--features", few, "--head", head, "--validation", few, "--out", detector)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        taken = []
        for turn in range(repeats + 1):
            features = few if turn == 0 else many
            one, several = folder / f"{turn}.parquet", folder / f"{turn}"
            begun = time.process_time()
            alone = _opnp("score", detector, "--features", features, "--out", one)
            own, before = time.process_time() - begun, _worker_seconds()
            together = _opnp("score", detector, "--features", features, "--out", several, "--ray", "local")
            workers = sorted(spent - before.get(pid, 0.0) for pid, spent in _worker_seconds().items())[-2:]
            expected = parquet.read_table(one)
            if not dataset.dataset(several).to_table().sort_by("index").equals(expected):
                raise RuntimeError("the tables differ")
            if turn:
                spent = f"of the processor {workers[0]:.1f} and {workers[1]:.1f} s against {own:.1f} s"
                taken.append(f"{together:.1f} s against {alone:.1f} s, {spent}")
                print(together / alone)  # noqa: T201  # read by `cluster_scores`
        print(f"the same bits; {'; '.join(taken)}; {_FEATURES} features, {_CLASSES} classes")  # noqa: T201  # as above


def _worker_seconds() -> dict[int, float]:
    """Return the time of the processor that each worker of Ray has taken, by its process; nothing beside Linux."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
            if name.startswith("ray::"):
                fields = rest.split()
                found[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _opnp(*arguments: object) -> float:
    """Run the command line, and return the seconds that it takes."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        app([*map(str, arguments)], standalone_mode=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    _compared(int(sys.argv[1]), int(sys.argv[2]))

"""Measure everything side by side, print it, write it as JSON, and exit with 1 where a bound is missed.

python -m benchmarks --features ../shared/data/features --out build/benchmarks.json
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.against_dice import against_dice
from benchmarks.cluster_scores import cluster_scores
from benchmarks.folder_scores import folder_scores
from benchmarks.fusion_costs import fusion_costs
from benchmarks.head_products import head_products
from benchmarks.measuring import Outcome
from benchmarks.pass_overhead import pass_overhead
from benchmarks.settings_sweep import settings_sweep
from benchmarks.sharded_fits import sharded_fits


def outcomes(features: Path, *, repeats: int) -> Iterator[Outcome]:
    """Yield every outcome, in the order of the table."""
    yield from pass_overhead(batches=4, repeats=repeats)
    yield from head_products(repeats=repeats)
    yield from fusion_costs(repeats=repeats)
    if features.is_dir():
        yield from settings_sweep(features / "densenet_cifar100", repeats=max(1, repeats // 2))
    else:
        sys.stderr.write(f"{features} is absent: the sweep over settings is not measured.\n")
    yield from against_dice(repeats=repeats)
    yield from sharded_fits(repeats=max(1, repeats // 2))
    yield from folder_scores(images=640, repeats=max(1, repeats // 2))
    yield from cluster_scores(repeats=max(1, repeats // 2))


def main() -> int:
    """Run, print and write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder of cached features of real models")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each pair")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for outcome in outcomes(options.features, repeats=options.repeats):
        sys.stdout.write(outcome.line() + "\n")
        sys.stdout.flush()
        found.append(outcome)
    missed = [outcome.name for outcome in found if not outcome.is_met]
    if options.out is not None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        machine = {"device": device, "cores": os.cpu_count(), "python": platform.python_version()}
        versions = {name: version(name) for name in ("opnp", "torch", "pytorch-ood")}
        content = {"machine": machine, "versions": versions, "outcomes": [outcome.to_json() for outcome in found]}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if missed:
        sys.stderr.write("Missed: " + "; ".join(missed) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

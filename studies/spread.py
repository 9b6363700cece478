"""How far figures go from split to split, near and far apart, under both conventions of FPR95: from scores alone.

    python -m studies.spread panel_scores.parquet --near cifar100,densenet_cifar100:cifar10 --out spread.json

The scores are those that `studies.panel` writes: `OPNP()` and every published single setting on every set. A split sets
some rows of ``test`` aside, as `studies.panel` does; the others judge. For each figure the record has the mean over the
splits and the standard deviation between them. The splits overlap, so the latter says what the choice of the rows that
judge does, and not what other data would.
"""

import argparse
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet
from torch import Tensor

from opnp.core import detection_metrics
from studies.panel import judging_rows

__all__ = ["judged_by_side", "main", "read_scores"]

FIGURES = ("auroc", "fpr95", "fpr95_ood_positive")


def read_scores(path: Path) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return the scores of a file by model, method and set."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    table = parquet.read_table(path)
    names = [table[column].to_pylist() for column in ("model", "method", "set")]
    keys = list(zip(*names, strict=True))
    starts = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]]
    scores = torch.from_numpy(table["score"].to_numpy().copy())
    for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        model, method, part = keys[start]
        found.setdefault(model, {}).setdefault(method, {})[part] = scores[start:end]
    return found


def judged_by_side(
    scores: Mapping[str, Tensor], near: Collection[str], rows: Sequence[Tensor]
) -> dict[str, dict[str, list[float]]]:
    """Return mean and deviation of each figure in %, by side: over all OOD sets, the near and the far ones.

    Args:
        scores: Scores by set, ``test`` and ``ood_*``.
        near: Names of the near OOD sets.
        rows: Rows of ``test`` that judge in each split.

    Example:
        >>> scores = {"test": torch.arange(4.0), "ood_a": torch.tensor([9.0, 1.0])}
        >>> found = judged_by_side(scores, ["a"], [torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])])
        >>> sorted(found), found["near"]["auroc"]
        (['all', 'near'], [66.6667, 11.7851])

    """
    names = [name for name in scores if name != "test"]
    sides = {
        "all": range(len(names)),
        "near": [place for place, name in enumerate(names) if name.removeprefix("ood_") in near],
        "far": [place for place, name in enumerate(names) if name.removeprefix("ood_") not in near],
    }
    splits = [detection_metrics(scores["test"][part], [scores[name] for name in names]) for part in rows]
    return {
        side: {
            figure: _mean_and_deviation(
                [100 * statistics.fmean(getattr(split[place], figure) for place in places) for split in splits]
            )
            for figure in FIGURES
        }
        for side, places in sides.items()
        if places
    }


def _mean_and_deviation(values: Sequence[float]) -> list[float]:
    return [round(statistics.fmean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0]


def main() -> None:
    """Judge the scores and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="parquet file of scores that `studies.panel` wrote")
    parser.add_argument("--near", default="", help="near OOD sets, SET or MODEL:SET, with commas between them")
    parser.add_argument("--splits", type=int, default=10, help="number of random splits, as for `studies.panel`")
    parser.add_argument("--out", type=Path, required=True, help="JSON record to write")
    options = parser.parse_args()
    named = [name for name in options.near.split(",") if name]
    models: dict[str, Any] = {}
    for model, methods in read_scores(options.scores).items():
        sets = [name.removeprefix("ood_") for name in next(iter(methods.values())) if name != "test"]
        near = [name for name in sets if name in named or f"{model}:{name}" in named]
        rows = judging_rows(len(next(iter(methods.values()))["test"]), options.splits)
        models[model] = {
            "near": near,
            "far": [name for name in sets if name not in near],
            "methods": {name: judged_by_side(scores, near, rows) for name, scores in methods.items()},
        }
    content = {"version": 1, "splits": options.splits, "models": models}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

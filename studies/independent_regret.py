"""AUROC and the table of regrets anew, by a program that shares no line with the library: from scores and features.

    python -m studies.independent_regret panel_scores.parquet --features FEATURES --record docs/records/panel.json

The scores are those of `OPNP()` and of every published single setting, as `studies.panel` wrote them. They are read
with pyarrow and judged by the ranks of SciPy; torch draws the splits alone, as no other library has its generator.
Energy, MaxLogit and MSP are computed from the features as well. The program fails where they are not the scores of the
file, or where the record has another regret.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet
from safetensors.numpy import load_file
from scipy.special import logsumexp
from scipy.stats import rankdata

FUSED, SPLITS = "OPNP()", 10
POINTS, ROUNDING = 0.005, 1e-6

Scores = dict[str, dict[str, dict[str, Any]]]  # arrays by model, method and set


def read(path: Path) -> Scores:
    """Return the scores of a file."""
    columns = parquet.read_table(path).to_pandas()
    found: Scores = {}
    for (model, method, part), rows in columns.groupby(["model", "method", "set"], observed=True):
        found.setdefault(model, {}).setdefault(method, {})[part] = rows.sort_values("index")["score"].to_numpy()
    return found


def auroc(inside: Any, outside: Any) -> float:  # noqa: ANN401  # arrays of NumPy
    """Return the AUROC in %: the Mann-Whitney statistic from average ranks."""
    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    return float(100 * (ranks.sum() - len(outside) * (len(outside) + 1) / 2) / (len(inside) * len(outside)))


def regrets(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the regret by method and model: mean over splits of the best single setting's AUROC less the method's."""
    found: dict[str, dict[str, float]] = {}
    for model, methods in scores.items():
        samples = len(methods[FUSED]["test"])
        orders = [torch.randperm(samples, generator=torch.Generator().manual_seed(seed)) for seed in range(SPLITS)]
        judging = [order[min(2000, samples // 3) :].numpy() for order in orders]
        aurocs = {
            name: [
                float(np.mean([auroc(sets["test"][rows], each) for part, each in sets.items() if part != "test"]))
                for rows in judging
            ]
            for name, sets in methods.items()
        }
        best = np.max([values for name, values in aurocs.items() if name != FUSED], axis=0)
        for name, values in aurocs.items():
            found.setdefault(name, {})[model] = float(np.maximum(0, best - values).mean())
    return found


def gap_from_features(scores: Scores, folder: Path) -> float:
    """Return how far Energy, MaxLogit and MSP of the file are from those of the features, relative to their size."""
    gaps = []
    for model, methods in scores.items():
        head = {name: each.astype(float) for name, each in load_file(folder / model / "head.safetensors").items()}
        for part in methods["Energy"]:
            rows = load_file(folder / model / f"{part}.safetensors")["features"].astype(float)
            logits = rows @ head["weight"].T + head.get("bias", 0.0)
            energy, largest = -logsumexp(logits, axis=1), logits.max(1)
            for name, own in {"Energy": energy, "MaxLogit": -largest, "MSP": -np.exp(largest + energy)}.items():
                gaps.append(float(np.max(np.abs(methods[name][part] - own) / (1 + np.abs(own)))))
    return float(np.max(gaps))


def gap_from_record(found: dict[str, dict[str, float]], rows: dict[str, Any]) -> float:
    """Return the largest difference from the regrets of a record, in points."""
    gaps = [abs(value - rows[name]["regret"][model]) for name, of in found.items() for model, value in of.items()]
    return float(np.max(gaps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    given = parser.parse_args()
    table = read(given.scores)
    result = regrets(table)
    for method, of_method in sorted(result.items(), key=lambda pair: sum(pair[1].values())):
        values = list(of_method.values())
        sys.stdout.write(f"{method:24} mean {np.mean(values):6.2f}  worst {max(values):6.2f}\n")
    record = json.loads(given.record.read_text(encoding="utf-8"))
    gaps = gap_from_features(table, given.features), gap_from_record(result, record["rows"])
    sys.stdout.write(f"from the features {gaps[0]:.1e}, from the record {gaps[1]:.4f} points\n")
    sys.exit(not (gaps[0] <= ROUNDING and gaps[1] <= POINTS))  # NaN fails too

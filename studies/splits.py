"""The detector on its own choice over many random splits of the ID samples, beside every baseline on the same samples.

    python -m studies.splits FEATURES --bench RESULTS --out splits.json

``RESULTS`` is the folder that ``opnp bench`` wrote for the same features: the scores of the baselines are read from it,
as they do not depend on the split. Each split gives some rows of ``test`` to the detector to choose by (at most 2000,
30 % of fewer), and the rest judges it, the baselines and the plain energy.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pyarrow import compute, parquet
from torch import Tensor

from opnp import OPNP
from opnp.bench import detection_figures, mean_figures
from opnp.bench.bench_record import BenchRecord, ModelResult
from opnp.bench.feature_folder import ModelData, feature_folders, read_feature_folder
from opnp.bench.splitting import IdSplit, split_test

__all__ = ["ModelSplits", "main"]

PRODUCTS: dict[str, OPNP] = {"OPNP()": OPNP(), "OPNP(shaping=None)": OPNP(shaping=None)}
_BASELINES = ("baseline",)

Scores = Mapping[str, Tensor]
"""Scores by name of the set: ``test``, or that of an OOD set."""
ModelSplits = dict[str, object]


def baseline_scores(path: Path, result: ModelResult) -> dict[str, dict[str, Tensor]]:
    """Return the scores that a benchmark kept of the baselines of one model, by method and set."""
    names = [row.method for row in result.methods if row.group in _BASELINES and row.status == "ok"]
    kept: dict[str, dict[str, Tensor]] = {}
    for name in names:
        table = parquet.read_table(path, filters=[("model", "=", result.model), ("method", "=", name)])
        kept[name] = {}
        for part in ("test", *(f"ood_{each}" for each in result.nearness)):
            rows = table.filter(compute.equal(table["set"], part))
            scores, index = (torch.tensor(rows[column].to_numpy()) for column in ("score", "index"))
            kept[name][part.removeprefix("ood_")] = scores[index.argsort()]
    return kept


def product_scores(detector: OPNP, model: ModelData, split: IdSplit) -> dict[str, Tensor]:
    """Return the scores of a detector that has chosen by the validation part of a split."""
    held_out = split.validation_set(model)
    detector.fit_features(
        model.train.features,
        weight=model.head.weight,
        bias=model.head.bias,
        labels=model.train.labels,
        validation=(held_out.features, held_out.labels),
    )
    sets = {"test": model.test.features} | model.ood
    return {name: detector.score_features(features).double() for name, features in sets.items()}


def figures(scores: Scores, rest: Tensor, nearness: Mapping[str, str]) -> dict[str, float | None]:
    """Return mean AUROC and FPR95 of one method on one split: over all OOD sets, the near ones and the far ones."""
    inside = scores["test"][rest]
    found = {name: detection_figures(inside, scores[name]) for name in nearness}
    values: dict[str, float | None] = {}
    for group in ("all", "near", "far"):
        mean = mean_figures([each for name, each in found.items() if group in ("all", nearness[name])])
        values[f"auroc_{group}"] = None if mean is None else mean.auroc
        values[f"fpr95_{group}"] = None if mean is None else mean.fpr95
    return values


def model_splits(model: ModelData, result: ModelResult, path: Path, *, splits: int) -> ModelSplits:
    """Return, for one model, what every method reaches on every split, and what was chosen."""
    fixed = baseline_scores(path, result)
    rows: dict[str, list[dict[str, float | None]]] = {name: [] for name in (*fixed, *PRODUCTS)}
    chosen: dict[str, list[dict[str, object]]] = {name: [] for name in PRODUCTS}
    split = split_test(len(model.test.features))
    for seed in range(splits):
        split = split_test(len(model.test.features), seed=seed)
        for name, scores in fixed.items():
            rows[name].append(figures(scores, split.rest, result.nearness))
        for name, detector in PRODUCTS.items():
            rows[name].append(figures(product_scores(detector, model, split), split.rest, result.nearness))
            chosen[name].append(detector.settings.to_json())
    return {
        "validation_samples": len(split.validation),
        "rest": len(split.rest),
        "figures": rows,
        "chosen": chosen,
    }


def main() -> None:
    """Run the splits of every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of cached features, or a folder of such folders")
    parser.add_argument("--bench", type=Path, required=True, help="what `opnp bench` wrote for them")
    parser.add_argument("--models", default="", help="take the models alone whose names begin so")
    parser.add_argument("--splits", type=int, default=10, help="number of random splits")
    parser.add_argument("--out", type=Path, required=True, help="JSON record to write")
    options = parser.parse_args()
    record = BenchRecord.from_json((options.bench / "results.json").read_text(encoding="utf-8"))
    results = {result.model: result for result in record.models}
    models: dict[str, ModelSplits] = {}
    for folder in feature_folders(options.features):
        if not folder.name.startswith(options.models):
            continue
        model = read_feature_folder(folder)
        path = options.bench / "scores.parquet"
        models[model.name] = model_splits(model, results[model.name], path, splits=options.splits)
    content = {"version": 1, "splits": options.splits, "versions": record.versions, "models": models}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

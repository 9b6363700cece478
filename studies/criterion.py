"""How well each ID-only criterion ranks settings: its rank correlation with the AUROC on real OOD sets.

    python -m studies.criterion FEATURES --out criterion.json

For each model, settings are drawn at random from the grid that the automatic choice searches (shapings, ratios, scopes,
neuron readings). The criteria see the validation part of ``test`` alone; the AUROC is that of the rest against each OOD
set. No choice is made by it.
"""

import argparse
import itertools
import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from scipy.stats import spearmanr

from opnp.bench import detection_figures
from opnp.bench.feature_folder import ModelData, feature_folders, read_feature_folder
from opnp.bench.opnp_methods import ratios_label
from opnp.bench.splitting import split_test
from opnp.core import ASHS, SCALE, NeuronReading, ReAct, Scope, Shaping
from opnp.detector import Ratios, Settings
from opnp.detector.criterion import Judge, Trial
from opnp.detector.fitting import fit_sum
from opnp.detector.scoring import Scorer
from opnp.errors import EmptyDataError, RatioWarning

__all__ = ["main", "model_study", "settings_grid"]

_SHAPINGS: tuple[Shaping | None, ...] = (
    None,
    *(ReAct(quantile) for quantile in (0.9, 0.95, 0.99)),
    *(ASHS(quantile) for quantile in (0.65, 0.8, 0.9, 0.95)),
    *(SCALE(quantile) for quantile in (0.65, 0.8, 0.85, 0.9, 0.95)),
)
_WEIGHTS = ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.5, 0.0), (0.8, 0.0), (0.0, 0.001), (0.0, 0.005))
_NEURONS = ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.5, 0.0), (0.0, 0.01), (0.0, 0.02), (0.0, 0.05))
_SCOPES: tuple[Scope, ...] = ("layer", "class")
_READINGS: tuple[NeuronReading, ...] = ("gradient", "aggregate")
CRITERIA = ("holdout", "thinned", "scrambled", "failure", "value")


def settings_grid(count: int, *, seed: int) -> list[Settings]:
    """Return `count` settings: the plain energy, every shaping without pruning, and others drawn from the grid."""
    grid = []
    for shaping, weights, neurons in itertools.product(_SHAPINGS, _WEIGHTS, _NEURONS):
        ratios = Ratios(w_min=weights[0], w_max=weights[1], o_min=neurons[0], o_max=neurons[1])
        for scope, neuron in itertools.product(
            _SCOPES if any(weights) else _SCOPES[:1], _READINGS if any(neurons) else _READINGS[:1]
        ):
            grid.append(Settings(ratios=ratios, scope=scope, neuron=neuron, shaping=shaping))
    unpruned = [each for each in grid if each.fixed_ratios == Ratios()]
    others = [each for each in grid if each.fixed_ratios != Ratios()]
    drawn = random.Random(seed).sample(others, count - len(unpruned))  # noqa: S311  # a draw of settings, no secret
    return unpruned + drawn


def model_study(model: ModelData, *, count: int, seed: int) -> dict[str, object] | None:
    """Return the trials of one model with their real AUROC, and the rank correlations; None with too few classes."""
    split = split_test(len(model.test.features), seed=seed)
    held_out = split.validation_set(model)
    settings = settings_grid(count, seed=seed)
    weight, bias = model.head.weight, model.head.bias
    total = fit_sum([(model.train.features, None)], weight=weight, bias=bias, settings=settings[0], is_counting=True)
    fitted = total.fitted(weight, bias, react_quantiles=(0.9, 0.95, 0.99))
    try:
        judge = Judge.from_samples(held_out.features, held_out.labels, fitted, settings[0], ood=None, seed=0)
    except EmptyDataError:
        return None
    rows = []
    unpruned: dict[Shaping | None, Trial] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        for each in settings:
            shaping = each.fixed_shaping
            if shaping not in unpruned:
                unpruned[shaping] = judge.trial(fitted, replace(settings[0], shaping=shaping))
            is_pruned = each.fixed_ratios != Ratios()
            trial = judge.trial(fitted, each, unpruned=unpruned[shaping]) if is_pruned else unpruned[shaping]
            scorer = Scorer.from_fitted(fitted, each)
            inside = scorer.scores(model.test.features[split.rest])
            real = {name: detection_figures(inside, scorer.scores(ood)).auroc for name, ood in model.ood.items()}
            rows.append(_row(trial, real))
    return {
        "validation_samples": len(split.validation),
        "settings": len(rows),
        "harmless": sum(bool(row["is_harmless"]) for row in rows),
        "correlation": {"all": _correlations(rows), "harmless": _correlations([r for r in rows if r["is_harmless"]])},
        "trials": rows,
    }


def _row(trial: Trial, real: dict[str, float]) -> dict[str, object]:
    return {
        "setting": _label(trial.settings),
        "holdout": trial.mean_holdout,
        "thinned": trial.thinned,
        "scrambled": trial.scrambled,
        "failure": trial.failure,
        "value": trial.value,
        "loss": trial.loss,
        "is_harmless": trial.is_harmless,
        "mean_auroc": sum(real.values()) / len(real),
    }


def _label(settings: Settings) -> str:
    ratios = ratios_label(settings.fixed_ratios, neuron=settings.neuron)
    return f"{ratios}, scope {settings.scope}, {settings.shaping}"


def _correlations(rows: Sequence[dict[str, object]]) -> dict[str, float | None]:
    """Return Spearman's rank correlation of each criterion with the mean AUROC; None where it does not vary."""
    found: dict[str, float | None] = {}
    for name in CRITERIA:
        values = [cast("float", row[name]) for row in rows]
        real = [cast("float", row["mean_auroc"]) for row in rows]
        varies = len(set(values)) > 1 and len(set(real)) > 1
        found[name] = float(spearmanr(values, real).statistic) if varies else None
    return found


def main() -> None:
    """Study every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="+", help="folders of cached features")
    parser.add_argument("--count", type=int, default=250, help="number of settings to draw for each model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw and of the split")
    parser.add_argument("--out", type=Path, required=True, help="JSON record to write")
    options = parser.parse_args()
    models: dict[str, object] = {}
    for folder in itertools.chain.from_iterable(feature_folders(path) for path in options.features):
        model = read_feature_folder(folder)
        study = model_study(model, count=options.count, seed=options.seed)
        if study is not None:
            models[model.name] = study
    content = {"version": 1, "seed": options.seed, "models": models}
    lines = json.dumps(content).replace('{"setting"', '\n{"setting"')
    options.out.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

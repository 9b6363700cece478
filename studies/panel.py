"""Which scores to fuse: the regret of every single score, and of every fusion that was tried, on real models.

    python -m studies.panel FEATURES --out panel.json --scores panel_scores.parquet

Regret of a method on a model: AUROC of the best of 26 published single settings, chosen with hindsight, less its own,
at least 0. AUROC is the mean over the model's OOD sets. A split sets some rows of ``test`` aside, as one would to
calibrate (2000, or a third of fewer); the others judge. Fusions take their scales from training rows kept out of the
sums. What was chosen on these models, the form of the pruned head and the members, is judged by leaving each model out
in turn, and so is the best single setting. The scores of `OPNP()` and of every single setting are written as they are,
for `studies.spread` and `studies.independent_regret`.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from opnp import ASHS, MEMBERS, OPNP, PANEL, SCALE, Ratios, ReAct, Settings
from opnp.bench.features import ModelData, feature_folders, read_feature_folder
from opnp.bench.records import ScoreBlock, write_scores
from opnp.core import (
    ClassGaussian,
    PrincipalSpace,
    energy_score,
    fdbd_score,
    fused_score,
    gen_score,
    mahalanobis_score,
    max_logit_score,
    msp_score,
    nci_score,
    relative_mahalanobis_score,
    tail_scales,
    tail_units,
    vim_score,
)
from opnp.core.fusion import tail_reason
from opnp.core.moments import directions
from opnp.detector.fit_pass import FitSum
from opnp.errors import SignedFeaturesWarning
from opnp.values.bench import PRODUCT as FUSED

__all__ = ["Judged", "fusions", "judged", "judging_rows", "main"]

_SHARE_SET_ASIDE, _MOST_SET_ASIDE = 3, 2000
_ROWS = 1024
_BASE = tuple(name for name in PANEL if name != "opnp")
_SIX = ("gen", "react", "scale", "fdbd", "mahalanobis", "vim")
_PRUNED = {
    f"{score} of w_min {share:g}{' by class' if scope == 'class' else ''}{' under SCALE' if shaping else ''}": Settings(
        ratios=Ratios(w_min=share),
        scope=scope,
        score=score,
        shaping=shaping,
        precision="float64",
    )
    for share in (0.3, 0.5, 0.8)
    for scope in ("layer", "class")
    for score in ("energy", "gen", "msp")
    for shaping in (None, SCALE(0.85))
} | {
    "energy of w_max 0.005": Settings(ratios=Ratios(w_max=0.005), precision="float64"),
    "energy of o_min 0.3, gradient": Settings(ratios=Ratios(o_min=0.3), precision="float64"),
    "energy of o_max 0.02, aggregate": Settings(ratios=Ratios(o_max=0.02), neuron="aggregate", precision="float64"),
}
"""Forms of the pruned head, by name."""
_CHOSEN = "energy of w_min 0.5 under SCALE"

Scores = Mapping[str, Tensor]
"""Scores by name of the set: ``kept``, ``test``, or that of an OOD set."""


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """One model with every score on every set.

    Attributes:
        singles: Scores of the published single settings, fitted on all training rows, by name.
        scores: Scores that may be fused, fitted on the rows that are summed, by name; with those of the kept rows.
        rest: Rows of ``test`` that judge, of each split.

    """

    singles: dict[str, Scores]
    scores: dict[str, Scores]
    rest: list[Tensor]

    def fused(self, members: Sequence[str]) -> Scores:
        """Return the fused scores of members; one that cannot be measured is left out, as the detector does."""
        columns = []
        for name in members:
            kept = self.scores[name]["kept"]
            scales = tail_scales(kept[:, None])
            if tail_reason(kept, scales[:, 0]) is None:
                columns.append((self.scores[name], scales))
        return {
            part: fused_score(torch.cat([tail_units(scores[part][:, None], scales) for scores, scales in columns], 1))
            for part in self.singles["Energy"]
        }

    def aurocs(self, scores: Scores) -> list[float]:
        """Return the AUROC in %, mean over the OOD sets, on each split."""
        outside = [values for part, values in scores.items() if part not in ("kept", "test")]
        wins = torch.stack([_wins(scores["test"], values) for values in outside]).mean(0)
        return [100 * float(wins[rows].mean()) for rows in self.rest]

    def blocks(self, model: str) -> list[ScoreBlock]:
        """Return the scores of `OPNP()` and of every single setting, to be written."""
        return [
            ScoreBlock(
                model, part if part == "test" else f"ood_{part}", name, torch.arange(len(values)), values.double()
            )
            for name, scores in ({FUSED: self.fused(PANEL)} | self.singles).items()
            for part, values in scores.items()
        ]


def judged(model: ModelData, *, splits: int) -> Judged:
    """Return every score of one model."""
    head, training = model.head, model.train.features.double()
    weight, bias = head.weight.double(), None if head.bias is None else head.bias.double()
    sets = {"test": model.test.features.double()} | {name: rows.double() for name, rows in model.ood.items()}
    settings = Settings.of_fusion(MEMBERS, precision="float64")
    total = FitSum.of([(training, None)], weight, bias, settings)
    state = total.fitted()
    if total.kept is None:
        raise RuntimeError("A fusion keeps rows.")
    within = {"kept": total.kept.smallest(state.kept)} | sets
    scores: dict[str, Scores] = {
        name: {part: state.member_scores(rows, (name,))[:, 0] for part, rows in within.items()}
        for name in MEMBERS
        if name not in state.left_out
    }
    pruned = {name: state.with_settings(form).pruned for name, form in _PRUNED.items()}
    scores |= {name: {part: each.scores(rows) for part, rows in within.items()} for name, each in pruned.items()}
    return Judged(
        singles=_singles(training, weight, bias, sets), scores=scores, rest=judging_rows(len(sets["test"]), splits)
    )


def _singles(training: Tensor, weight: Tensor, bias: Tensor | None, sets: Scores) -> dict[str, Scores]:
    """Return the scores of 26 published single settings on each set."""
    logits = {part: _logits(rows, weight, bias) for part, rows in sets.items()}
    found: dict[str, Scores] = {}
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "Energy": energy_score,
        "MSP": msp_score,
        "MaxLogit": max_logit_score,
        "GEN": gen_score,
    }
    for name, score in plain.items():
        found[name] = {part: score(values) for part, values in logits.items()}
    shapings = (
        *(ReAct(q) for q in (0.9, 0.95, 0.99)),
        *(shape(q) for shape in (ASHS, SCALE) for q in (0.65, 0.85, 0.9, 0.95)),
    )
    ratios = (*(Ratios(w_min=share) for share in (0.3, 0.5, 0.8)), Ratios(w_max=0.005))
    for shaping in shapings:
        state = _fitted(OPNP(shaping=shaping, precision="float64"), training, weight, bias)
        name = f"{type(shaping).__name__} {shaping.quantile:g}".replace("ASHS", "ASH-S")
        found[name] = {part: state.score_features(rows) for part, rows in sets.items()}
    fixed = _fitted(OPNP(ratios=Ratios(), precision="float64"), training, weight, bias)
    for each in ratios:
        name = f"OPP w_min {each.w_min:g}" if each.w_min else f"OPP w_max {each.w_max:g}"
        found[name] = {part: fixed.with_ratios(each).score_features(rows) for part, rows in sets.items()}
    return found | _of_moments(training, weight, bias, sets) | _nearest(training, weight, bias, sets)


def _of_moments(training: Tensor, weight: Tensor, bias: Tensor | None, sets: Scores) -> dict[str, Scores]:
    """Return fDBD, NCI, Mahalanobis++, its relative form and ViM, from sums over all training rows."""
    settings = Settings.of_fusion(precision="float64")
    moments = FitSum.zeros(weight, bias, settings).enter_(training).moments
    if moments is None:
        raise RuntimeError("A fusion sums moments.")
    mean, gaussian = moments.feature / moments.count, ClassGaussian.from_moments(moments, is_relative=True)
    some = training[torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:_MOST_SET_ASIDE]]
    space = PrincipalSpace.from_moments(
        moments, weight=weight, bias=bias, features=some, logits=_logits(some, weight, bias)
    )
    scores: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fDBD": lambda h, f: fdbd_score(h, f, weight=weight, mean=mean),
        "NCI": lambda h, f: nci_score(h, f, weight=weight, mean=mean),
        "Mahalanobis++": lambda h, _: mahalanobis_score(h, gaussian),
        "relative Mahalanobis++": lambda h, _: relative_mahalanobis_score(h, gaussian),
        "ViM": lambda h, f: vim_score(h, f, space),
    }
    return {
        name: {part: score(rows, _logits(rows, weight, bias)) for part, rows in sets.items()}
        for name, score in scores.items()
    }


def _fitted(detector: OPNP, training: Tensor, weight: Tensor, bias: Tensor | None) -> OPNP:
    return detector.fit_features(training, weight=weight, bias=bias)


def _nearest(training: Tensor, weight: Tensor, bias: Tensor | None, sets: Scores) -> dict[str, Scores]:
    """Return KNN (cosine; k 50, 200, 10 for 10, 100, more classes) and NNGuide (k 10), all rows the bank."""
    bank, energies = directions(training).float(), -energy_score(_logits(training, weight, bias)).float()
    classes = len(weight)
    k = 50 if classes <= 10 else 200 if classes <= 100 else 10
    guided = bank * energies[:, None]

    def of(rows: Tensor) -> tuple[Tensor, Tensor]:
        z = directions(rows).float()
        near = torch.cat([-(part @ bank.T).topk(min(k, len(bank)), 1).values[:, -1] for part in z.split(_ROWS)])
        guide = torch.cat([(part @ guided.T).topk(min(10, len(bank)), 1).values.mean(1) for part in z.split(_ROWS)])
        return near.double(), guide.double() * energy_score(_logits(rows, weight, bias))

    both = {part: of(rows) for part, rows in sets.items()}
    return {name: {part: pair[place] for part, pair in both.items()} for place, name in enumerate(("KNN", "NNGuide"))}


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(rows, weight, bias)


def judging_rows(samples: int, count: int) -> list[Tensor]:
    """Return the rows of ``test`` that judge in each split, in random order."""
    aside = min(_MOST_SET_ASIDE, samples // _SHARE_SET_ASIDE)
    orders = (torch.randperm(samples, generator=torch.Generator().manual_seed(seed)) for seed in range(count))
    return [order[aside:] for order in orders]


def _wins(inside: Tensor, outside: Tensor) -> Tensor:
    """Return, for each ID score, the share of OOD scores above it, ties counting half: their mean is the AUROC."""
    ordered = outside.sort().values
    below = torch.searchsorted(ordered, inside, side="left") + torch.searchsorted(ordered, inside, side="right")
    return 1 - below.double() / (2 * len(ordered))


def fusions() -> dict[str, tuple[str, ...]]:
    """Return the fusions tried, by name."""
    panel = (*_BASE, _CHOSEN)
    found = {FUSED: PANEL, "six": _SIX, "six and norm": (*_SIX, "norm"), "panel without a pruned head": _BASE}
    found |= {f"panel with the {name}": (*_BASE, name) for name in _PRUNED}
    found |= {f"six, norm and the {name}": (*_SIX, "norm", name) for name in _PRUNED}
    found |= {f"{name} alone": (name,) for name in PANEL}
    found |= {f"{FUSED} without {name}": tuple(each for each in PANEL if each != name) for name in PANEL}
    extra = ("energy", "scale", "ash_s", "nci", "relative_mahalanobis", "opnp_gen")
    return found | {f"{FUSED} and {name}": (*panel, name) for name in extra}


def left_out(regrets: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> dict[str, object]:
    """Return, for each model, which of the methods named has the least mean regret on the others, and its regret on it.

    Example:
        >>> left_out({"a": {"one": 0.0, "two": 3.0}, "b": {"one": 1.0, "two": 1.0}}, ["a", "b"])["worst"]
        3.0

    """
    models = list(regrets[names[0]])
    chosen, values = {}, []
    for model in models:
        best = min(names, key=lambda name: sum(value for each, value in regrets[name].items() if each != model))
        chosen[model] = {"chosen": best, "regret": round(regrets[best][model], 4)}
        values.append(regrets[best][model])
    return {"models": chosen, "mean": round(_mean(values), 4), "worst": round(max(values), 4)}


def main() -> None:
    """Judge every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of folders of cached features")
    parser.add_argument("--splits", type=int, default=10, help="number of random splits")
    parser.add_argument("--out", type=Path, required=True, help="JSON record to write")
    parser.add_argument("--scores", type=Path, help="parquet file of scores to write, in the layout of `opnp bench`")
    options = parser.parse_args()
    warnings.simplefilter("ignore", SignedFeaturesWarning)  # two of the models have such features
    aurocs: dict[str, dict[str, list[float]]] = {}
    best: dict[str, list[float]] = {}
    best_names: dict[str, str] = {}
    singles: list[str] = []
    blocks: list[ScoreBlock] = []
    for folder in feature_folders(options.features):
        model = judged(read_feature_folder(folder), splits=options.splits)
        alone = {name: model.aurocs(scores) for name, scores in model.singles.items()}
        singles = list(alone)
        best[folder.name] = [max(values) for values in zip(*alone.values(), strict=True)]
        best_names[folder.name] = max(alone, key=lambda name: sum(alone[name]))
        mixed = {name: model.aurocs(model.fused(members)) for name, members in fusions().items()}
        for name, values in (alone | mixed).items():
            aurocs.setdefault(name, {})[folder.name] = values
        blocks += model.blocks(folder.name)
    regrets = {
        name: {
            model: [max(0.0, top - own) for top, own in zip(best[model], values, strict=True)]
            for model, values in rows.items()
        }
        for name, rows in aurocs.items()
    }
    means = {name: {model: _mean(values) for model, values in rows.items()} for name, rows in regrets.items()}
    rows = {
        name: {
            "kind": "single" if name in singles else "fusion",
            "members": list(fusions().get(name, ())),
            "auroc": {model: round(_mean(values), 4) for model, values in aurocs[name].items()},
            "regret": {model: round(value, 4) for model, value in means[name].items()},
            "mean_auroc": round(_mean([_mean(values) for values in aurocs[name].values()]), 4),
            "mean_regret": round(_mean(means[name].values()), 4),
            "worst_regret": round(max(means[name].values()), 4),
            "mean_regret_by_split": [round(_mean(split), 4) for split in zip(*regrets[name].values(), strict=True)],
        }
        for name in aurocs
    }
    content = {
        "version": 1,
        "splits": options.splits,
        "versions": {name: version(name) for name in ("opnp", "torch")},
        "best_single": {model: {"name": best_names[model], "auroc": round(_mean(best[model]), 4)} for model in best},
        "rows": rows,
        "left_out": {
            "form of the pruned head": left_out(means, [name for name in means if name.startswith("panel with the ")]),
            "members": left_out(means, [name for name in means if name.startswith((FUSED, "six"))]),
            "single setting": left_out(means, singles),
        },
    }
    if options.scores is not None:
        write_scores(options.scores, blocks)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


if __name__ == "__main__":
    main()

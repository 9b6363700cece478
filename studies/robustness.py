"""What `OPNP()` is worth with less data, how labels would change it, and whether it tells wrong answers.

    python -m studies.robustness FEATURES... --out robustness.json

Every figure is in %, and AUROC the mean over a model's OOD sets, judged by all of ``test`` unless it says otherwise.

- training: fitted on 1, 10 and 100 % of the training samples, several draws of the smaller shares.
- held_out: calibrated on 20, 100 and 1000 random ID test samples at ``keep=0.95``; the others judge, in many draws.
- labels: the fusion reads no label: Mahalanobis++ takes its class means by the class that the head predicts. Beside it
  the same with the classes of the labels, and the fusion without that member.
- failures: AUROC of each score as one that tells the wrong answers of the model from its right ones on ID samples, with
  accuracy and expected calibration error of the model.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opnp import PANEL, Settings
from opnp.bench.features import ModelData, feature_folders, read_feature_folder
from opnp.bench.figures import classifier_figures, head_logits
from opnp.core import (
    ClassGaussian,
    FeatureMoments,
    auroc,
    energy_score,
    flagged_rank,
    is_flagged,
    max_logit_score,
    member_scores,
    msp_score,
    tail_scales,
)
from opnp.core.kept_rows import row_hashes
from opnp.detector.fit_pass import FitSum
from opnp.errors import MemberWarning
from opnp.fitted import FittedState
from opnp.values.bench import PRODUCT as FUSED

__all__ = ["held_out", "main", "with_classes"]

SHARES = {0.01: 5, 0.1: 5, 1.0: 1}
"""Shares of the training samples, with the number of draws of each."""
_FEWEST = 10
HELD_OUT = (20, 100, 1000)
KEEP = 0.95
_CLASSES_OF = "mahalanobis"


def fitted(model: ModelData, rows: Tensor) -> FittedState:
    """Return the fusion that training features give."""
    bias = None if model.head.bias is None else model.head.bias.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemberWarning)  # what is left out is in the record
        settings = Settings.of_fusion(precision="float64")
        return FitSum.of([(rows.double(), None)], model.head.weight.double(), bias, settings).fitted()


def scored(state: FittedState, model: ModelData) -> dict[str, dict[str, Tensor]]:
    """Return the scores of the fusion and of each member on ``test`` and on every OOD set, by name."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in (FUSED, *state.fused)}
    for part, rows in model.judged.items():
        found[FUSED][part] = state.scores(rows.double())
        columns = state.member_scores(rows.double(), state.fused)
        for name, column in zip(state.fused, columns.T, strict=True):
            found[name][part] = column
    return found


def mean_auroc(scores: Mapping[str, Tensor]) -> float:
    """Return the AUROC in %, mean over the OOD sets."""
    return 100 * statistics.fmean(auroc(scores["test"], values) for part, values in scores.items() if part != "test")


def training(model: ModelData) -> dict[str, Any]:
    """Return what the fusion and its members are worth after so many training samples."""
    every, found = model.train.features, {}
    for share, draws in SHARES.items():
        count, values, left_out = max(_FEWEST, round(share * len(every))), [], set[str]()
        for seed in range(draws):
            order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
            state = fitted(model, every[order[:count].sort().values])
            left_out |= set(state.left_out)
            values.append({name: mean_auroc(scores) for name, scores in scored(state, model).items()})
        fused = [each[FUSED] for each in values]
        found[f"{100 * share:g} %"] = {
            "samples": count,
            "draws": draws,
            "auroc": _rounded([statistics.fmean(fused), min(fused), max(fused)]),
            "members": {
                name: _rounded([statistics.fmean(each[name] for each in values)])[0]
                for name in PANEL
                if name not in left_out
            },
            "left_out": sorted(left_out),
        }
    return found


def held_out(inside: Tensor, outside: Sequence[Tensor], *, draws: int) -> dict[str, Any]:
    """Return which shares of ID and of OOD samples are flagged, by number of held-out samples to calibrate on.

    Args:
        inside: Scores of ID samples, shape ``(n,)``.
        outside: Scores of each OOD set.
        draws: Number of random draws of the held-out samples.

    Returns:
        By number of held-out samples, where that leaves some to judge: the ``expected`` share of ID flagged, the mean
        of ``flagged`` over the draws with its 5 and 95 % quantile, and that of ``caught``, the mean share of the OOD
        sets that is flagged.

    """
    found = {}
    for count in (each for each in HELD_OUT if each < len(inside)):
        flagged, caught = [], []
        for seed in range(draws):
            order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
            known, others = inside[order[:count]], inside[order[count:]]
            shares = [float(is_flagged(each, known, keep=KEEP).double().mean()) for each in (others, *outside)]
            flagged.append(100 * shares[0])
            caught.append(100 * statistics.fmean(shares[1:]))
        found[str(count)] = {
            "expected": _rounded([100 * flagged_rank(count, keep=KEEP) / (count + 1)])[0],
            "flagged": _mean_and_range(flagged),
            "caught": _mean_and_range(caught),
        }
    return found


def with_classes(state: FittedState, features: Tensor, classes: Tensor) -> FittedState:
    """Return a fusion whose Mahalanobis++ goes by these classes of its training features, of shape ``(samples,)``."""
    if state.panel is None or state.scales is None:
        message = "a fusion is asked for"
        raise ValueError(message)
    order = row_hashes(features).argsort(stable=True)  # those with the smallest hashes give the scales
    kept, summed = order[: state.kept], order[state.kept :]
    width = features.shape[1]
    moments = FeatureMoments.zeros(classes=len(state.weight), features=width, has_product=False)
    for part in summed.split(4096):
        moments.add_(features[part], classes[part])
    panel = replace(state.panel, gaussian=ClassGaussian.from_moments(moments))
    scales = state.scales.clone()
    own = member_scores(features[kept].double(), panel, (_CLASSES_OF,))
    scales[:, state.fused.index(_CLASSES_OF)] = tail_scales(own)[:, 0]
    return replace(state, panel=panel, scales=scales)


def without_classes(state: FittedState) -> FittedState:
    """Return a fusion without Mahalanobis++."""
    if state.scales is None:
        message = "a fusion is asked for"
        raise ValueError(message)
    stays = [place for place, name in enumerate(state.fused) if name != _CLASSES_OF]
    return replace(state, fused=tuple(state.fused[place] for place in stays), scales=state.scales[:, stays])


def labelled(state: FittedState, model: ModelData) -> dict[str, float]:
    """Return the AUROC with the classes of Mahalanobis++ by prediction, by label, and without that member."""
    forms = {"by prediction": state, "without": without_classes(state)}
    if model.train.labels is not None:
        forms["by label"] = with_classes(state, model.train.features, model.train.labels)
    return {
        name: _rounded([mean_auroc({part: form.scores(rows.double()) for part, rows in model.judged.items()})])[0]
        for name, form in forms.items()
    }


def failures(model: ModelData, scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return accuracy and ECE of the model, and how well each score tells its wrong answers, on ID samples."""
    labels = model.test.labels
    if labels is None:
        message = f"{model.name}: `test` must have labels"
        raise ValueError(message)
    logits = head_logits(model.head, model.test.features)
    is_wrong = logits.argmax(1) != labels
    plain = {"MSP": msp_score(logits), "MaxLogit": max_logit_score(logits), "Energy": energy_score(logits)}
    every = {name: each["test"] for name, each in scores.items()} | plain
    figures = classifier_figures(logits, labels)
    return {
        "accuracy": round(100 * figures.accuracy, 4),
        "ece": round(100 * figures.ece, 4),
        "wrong": int(is_wrong.sum()),
        "auroc": {name: round(100 * auroc(values[~is_wrong], values[is_wrong]), 4) for name, values in every.items()},
    }


def _mean_and_range(values: Sequence[float]) -> list[float]:
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95]).double()).tolist()
    return _rounded([statistics.fmean(values), low, high])


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def main() -> None:
    """Study every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="+", help="folders of folders of cached features")
    parser.add_argument("--draws", type=int, default=200, help="number of draws of held-out samples")
    parser.add_argument("--out", type=Path, required=True, help="JSON record to write")
    options = parser.parse_args()
    torch.set_num_threads(1)  # of very few samples rounding decides some of ViM's directions, and threads the rounding
    models: dict[str, Any] = {}
    for folder in (each for path in options.features for each in feature_folders(path)):
        model = read_feature_folder(folder)
        state = fitted(model, model.train.features)
        scores = scored(state, model)
        inside, *outside = scores[FUSED].values()
        models[model.name] = {
            "training": training(model),
            "held_out": held_out(inside, outside, draws=options.draws),
            "labels": labelled(state, model),
            "failures": failures(model, scores),
        }
    content = {"version": 1, "keep": KEEP, "draws": options.draws, "models": models}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

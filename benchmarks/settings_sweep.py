"""A thousand settings in one go against the same settings one at a time, with all figures of detection."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Outcome, seconds
from opnp import OPNP, Ratios, Settings, aupr, auroc, fpr_at_tpr
from opnp.bench.features import ModelData, read_feature_folder
from opnp.core import DetectionFigures, detection_metrics, score_logits
from opnp.detector.tuning import swept
from opnp.errors import RatioWarning

__all__ = ["settings_sweep"]

_WEIGHTS = tuple(itertools.product((0.0, 0.1, 0.3, 0.5, 0.8), (0.0, 0.0005, 0.001, 0.002, 0.005)))
_NEURONS = tuple(itertools.product((0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.0, 0.005, 0.01, 0.02, 0.05)))
_STRIDE = 50
"""One setting in so many is timed by itself; the time is scaled."""


def settings_sweep(folder: Path, *, repeats: int) -> Iterator[Outcome]:
    """Yield the speed-up on cached features of a real model, and how far the scores lie apart."""
    model = read_feature_folder(folder)
    detector = OPNP(ratios=Ratios(), shaping=None, neuron="aggregate", precision="float64")
    detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)
    settings = [
        replace(
            detector.settings, ratios=Ratios(w_min=weights[0], w_max=weights[1], o_min=neurons[0], o_max=neurons[1])
        )
        for weights, neurons in itertools.product(_WEIGHTS, _NEURONS)
    ]
    values, apart = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        for _ in range(repeats):
            together: dict[int, Tensor] = {}
            alone: dict[int, Tensor] = {}
            fast = seconds(lambda: _together(detector, model, settings, together))  # noqa: B023  # called at once
            slow = seconds(lambda: _one_by_one(detector, model, settings, alone)) * _STRIDE  # noqa: B023  # as above
            values.append(slow / fast)
            apart.append(max(float(((together[k] - alone[k]) / alone[k]).abs().max()) for k in alone))
    name = f"{len(settings)} settings on {model.name}"
    yield Outcome(f"{name}: one at a time against all in one go", tuple(values), 3, kind="at least")
    yield Outcome(f"{name}: largest relative difference of a score", tuple(apart), 1e-6)


def _together(
    detector: OPNP, model: ModelData, settings: list[Settings], kept: dict[int, Tensor]
) -> list[list[DetectionFigures]]:
    """Return the figures of all settings, and keep the scores of those that are compared."""
    features = torch.cat([model.test.features, *model.ood.values()])
    sizes = [len(model.test.features), *map(len, model.ood.values())]
    figures = []
    for place, (scores,) in swept(detector._fitted(), settings, features, _score):  # noqa: SLF001  # what `sweep_features` reads too
        inside, *outside = scores.split(sizes)
        figures.append(detection_metrics(inside, outside))
        if place % _STRIDE == 0:
            kept[place] = scores
    return figures


def _one_by_one(detector: OPNP, model: ModelData, settings: list[Settings], kept: dict[int, Tensor]) -> None:
    """Take every figure of some of the settings, each with a detector of its own."""
    for place in range(0, len(settings), _STRIDE):
        own = detector.with_ratios(settings[place].ratios)
        inside = own.score_features(model.test.features)
        parts = [inside]
        for features in model.ood.values():
            outside = own.score_features(features)
            auroc(inside, outside)
            for positive in ("id", "ood"):
                fpr_at_tpr(inside, outside, positive=positive)
                aupr(inside, outside, positive=positive)
            parts.append(outside)
        kept[place] = torch.cat(parts)


def _score(logits: Tensor, settings: Settings) -> tuple[Tensor]:
    return (score_logits(logits, score=settings.score, temperature=settings.temperature),)

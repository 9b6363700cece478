"""Automatic settings on real features against the best baseline that hindsight names; OOD sets are never chosen by."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp import (
    ASHS,
    OPNP,
    SCALE,
    ReAct,
    auroc,
    energy_score,
    gen_score,
    max_logit_score,
    msp_score,
)
from opnp.core import Shaping, shaped
from opnp.data import LinearHead, read_features, read_head
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

HELD_OUT = {"densenet_cifar10": 2000, "densenet_cifar100": 2000, "mobilenet_v2_imagenet": 400}
SPLITS = 2  # more are for the benchmark
SHAPINGS: tuple[Shaping, ...] = (
    *(ReAct(quantile) for quantile in (0.9, 0.95, 0.99)),
    *(ASHS(quantile) for quantile in (0.65, 0.9, 0.95)),
    *(SCALE(quantile) for quantile in (0.65, 0.85, 0.9, 0.95)),
)
"""Published settings; each with the energy of the shaped features."""


@dataclass(frozen=True, eq=False)
class Data:
    """What the features of one model are."""

    head: LinearHead
    train: Tensor
    test: Tensor
    labels: Tensor
    ood: dict[str, Tensor]


@cache
def data_of(model: str) -> Data:
    folder = DATA / "features" / model
    test = read_features(folder / "test.safetensors")
    assert test.labels is not None
    return Data(
        head=read_head(folder / "head.safetensors"),
        train=read_features(folder / "train.safetensors").features.float(),
        test=test.features.float(),
        labels=test.labels,
        ood={path.stem: read_features(path).features.float() for path in sorted(folder.glob("ood_*.safetensors"))},
    )


def split_of(model: str, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of `test` for validation, and the rest."""
    order = torch.randperm(len(data_of(model).test), generator=torch.Generator().manual_seed(seed))
    return order[: HELD_OUT[model]], order[HELD_OUT[model] :]


def baseline_scores(model: str, features: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Scores of every baseline, from the functions of the core."""
    data = data_of(model)
    weight = data.head.weight.float()
    bias = None if data.head.bias is None else data.head.bias.float()
    logits = linear(features, weight, bias)
    yield "Energy", energy_score(logits)
    yield "MSP", msp_score(logits)
    yield "MaxLogit", max_logit_score(logits)
    yield "GEN", gen_score(logits)
    for shaping in SHAPINGS:
        threshold = react_threshold(model, shaping.quantile) if isinstance(shaping, ReAct) else None
        yield str(shaping), energy_score(linear(shaped(features, shaping, threshold=threshold), weight, bias))


@cache
def react_threshold(model: str, quantile: float) -> float:
    values = data_of(model).train.flatten()
    return float(values.kthvalue(round(quantile * len(values))).values)


@cache
def scores_of_baselines(model: str) -> dict[str, dict[str, Tensor]]:
    """Scores of `test` and of the OOD sets, by baseline."""
    data = data_of(model)
    found: dict[str, dict[str, Tensor]] = {}
    for name, features in {"test": data.test, **data.ood}.items():
        for baseline, scores in baseline_scores(model, features):
            found.setdefault(baseline, {})[name] = scores
    return found


def baselines(model: str, rest: Tensor) -> dict[str, float]:
    """Mean AUROC over the OOD sets in percent, by baseline."""
    ood = data_of(model).ood
    return {
        baseline: 100 * statistics.fmean(auroc(scores["test"][rest], scores[name]) for name in ood)
        for baseline, scores in scores_of_baselines(model).items()
    }


def automatic(model: str, detector: OPNP, seed: int) -> float:
    """Mean AUROC over the OOD sets in percent of a detector that chose on its part of `test`."""
    data, (held_out, rest) = data_of(model), split_of(model, seed)
    validation = data.test[held_out], data.labels[held_out]
    detector.fit_features(data.train, weight=data.head.weight, bias=data.head.bias, validation=validation)
    inside = detector.score_features(data.test[rest])
    return 100 * statistics.fmean(auroc(inside, detector.score_features(features)) for features in data.ood.values())


@pytest.mark.parametrize("model", HELD_OUT)
def test_the_default_is_near_the_best_baseline_that_hindsight_can_name(model: str) -> None:
    behind = []
    for seed in range(SPLITS):
        _, rest = split_of(model, seed)
        best = max(baselines(model, rest).values())
        behind.append(best - automatic(model, OPNP(), seed))
    assert max(behind) <= 0.7, behind
    assert statistics.fmean(behind) <= 0.4, behind


@pytest.mark.parametrize("model", HELD_OUT)
def test_ratios_alone_are_never_worse_than_energy(model: str) -> None:
    for seed in range(SPLITS):
        _, rest = split_of(model, seed)
        assert automatic(model, OPNP(shaping=None), seed) >= baselines(model, rest)["Energy"] - 0.1


def test_every_model_is_here() -> None:
    folders = {folder.name for folder in (DATA / "features").iterdir() if (folder / "head.safetensors").is_file()}
    assert set(HELD_OUT) == folders

"""Ratios chosen on OOD validation data, as the paper chooses them, with the gain on samples that were not searched.

The search goes over the ratios of the weights in both scopes, over those of the neurons in both readings, over the best
of each together, and over their neighbours. What is maximised is the AUROC of ID against OOD validation samples.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from opnp.core.masks import Scope
from opnp.core.metrics import auroc
from opnp.core.sensitivity import NeuronReading
from opnp.detector.sweeping import own_score, swept
from opnp.errors import EmptyDataError, RatioError, RatioWarning, SignedFeaturesWarning
from opnp.fitted import FittedState, Ratios, Settings, Tuning

__all__ = ["FEWEST_TUNED", "tuned"]

FEWEST_TUNED = 40
"""ID and OOD samples that a search needs each: half of them are searched on, half measure the gain."""

_WEIGHTS = (
    *(Ratios(w_min=share) for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)),
    *(Ratios(w_max=share) for share in (0.001, 0.005, 0.01, 0.02)),
)
_NEURONS = (
    *(Ratios(o_min=share) for share in (0.1, 0.3, 0.5, 0.7)),
    *(Ratios(o_max=share) for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3)),
)
_FINALISTS = 3


def tuned(
    state: FittedState, features: Tensor, ood: Tensor, *, searched: tuple[bool, bool] = (True, True)
) -> tuple[FittedState, Tensor]:
    """Return the state under the best ratios, and the ID features that were not searched, to calibrate on.

    Every second sample is searched on, the others measure what was gained over the plain energy; both are shuffled by
    a fixed seed before.

    Args:
        state: A fitted detector of the paper's method.
        features: Features of held-out ID samples, shape ``(samples, features)``.
        ood: Features of OOD validation samples, shape ``(samples, features)``.
        searched: Whether to search over the scope of the weights, and over the reading of the neurons.

    Raises:
        EmptyDataError: If there are fewer than 40 samples of either kind.

    """
    for name, rows in (("validation", features), ("validation_ood", ood)):
        if len(rows) < FEWEST_TUNED:
            raise EmptyDataError(
                f"Ratios need at least {FEWEST_TUNED} samples in `{name}` to be tuned on, got {len(rows)}: half of "
                f"them are searched on, half measure the gain."
            )
    (inside, rest), (outside, ood_rest) = _halves(features), _halves(ood)
    plain = replace(state.settings, ratios=Ratios())
    found: dict[Settings, float] = {plain: _auroc(state, plain, inside, outside)}

    def attempt(candidates: Iterable[Settings]) -> None:
        fresh = [each for each in dict.fromkeys(candidates) if each not in found and _is_sound(state, each)]
        found.update(zip(fresh, _aurocs(state, fresh, inside, outside), strict=True))

    def best(of: tuple[Ratios, ...]) -> list[Settings]:
        mine = [each for each in found if each.ratios in of]
        return sorted(mine, key=lambda each: -found[each])[:_FINALISTS]

    scopes: tuple[Scope, ...] = ("layer", "class") if searched[0] else (plain.scope,)
    readings: tuple[NeuronReading, ...] = ("gradient", "aggregate") if searched[1] else (plain.neuron,)
    attempt(replace(plain, ratios=each, scope=scope) for each in _WEIGHTS for scope in scopes)
    attempt(replace(plain, ratios=each, neuron=reading) for each in _NEURONS for reading in readings)
    attempt(_joined(first, second) for first in best(_WEIGHTS) for second in best(_NEURONS))
    attempt(_neighbours(max(found, key=lambda each: found[each])))
    chosen = max(found, key=lambda each: (found[each], each == plain))
    tuning = Tuning(
        settings=chosen,
        tried=len(found),
        searched=(len(inside), len(outside)),
        unsearched=(len(rest), len(ood_rest)),
        auroc=_auroc(state, chosen, rest, ood_rest),
        energy_auroc=_auroc(state, replace(plain, score="energy", shaping=None), rest, ood_rest),
    )
    return replace(state.with_settings(chosen), tuning=tuning), rest


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)
    return rows[order[::2]], rows[order[1::2]]


def _aurocs(state: FittedState, settings: list[Settings], features: Tensor, ood: Tensor) -> list[float]:
    if not settings:
        return []
    values = [0.0] * len(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        warnings.simplefilter("ignore", SignedFeaturesWarning)
        for place, (scores,) in swept(state, settings, torch.cat([features, ood]), own_score):
            values[place] = auroc(scores[: len(features)], scores[len(features) :])
    return values


def _auroc(state: FittedState, settings: Settings, features: Tensor, ood: Tensor) -> float:
    return _aurocs(state, [settings], features, ood)[0]


def _is_sound(state: FittedState, settings: Settings) -> bool:
    """Return whether the ratios leave something of this head."""
    neurons, ratios = state.weight.shape[1], settings.ratios
    weights = neurons if settings.scope == "class" else state.weight.numel()
    return (
        round(ratios.w_min * weights) + round(ratios.w_max * weights) < weights
        and round(ratios.o_min * neurons) + round(ratios.o_max * neurons) < neurons
    )


def _joined(first: Settings, second: Settings) -> Settings:
    of_weights, of_neurons = first.ratios, second.ratios
    ratios = Ratios(of_weights.w_min, of_weights.w_max, of_neurons.o_min, of_neurons.o_max)
    return replace(first, ratios=ratios, neuron=second.neuron)


def _neighbours(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with one ratio half as large, or half as large again."""
    ratios = settings.ratios
    for name in Ratios.__slots__:
        share = getattr(ratios, name)
        for factor in (0.5, 1.5):
            if 0 < share * factor < 0.95:
                with contextlib.suppress(RatioError):
                    yield replace(settings, ratios=replace(ratios, **{name: round(share * factor, 6)}))

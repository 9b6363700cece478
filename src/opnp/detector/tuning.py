"""Choosing ratios, scope, neuron reading and shaping without OOD data, coarse to fine.

The search begins with shapings alone, goes on with single ratios under the best of them, then joins the best of each
layer and tries the neighbours. No pruning and no shaping is always a candidate; a tie goes to less.
"""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from opnp.core.shaping import ASHS, SCALE, ReAct, Shaping
from opnp.detector.criterion import Judge, Trial
from opnp.detector.fitting import Fitted
from opnp.detector.ratios import Ratios
from opnp.detector.settings import Settings
from opnp.errors import RatioError, RatioWarning, SignedFeaturesWarning

__all__ = ["REACT_QUANTILES", "Tuning", "tuned"]

REACT_QUANTILES = (0.9, 0.95, 0.99)
_SHAPINGS: tuple[Shaping, ...] = (
    *(ReAct(quantile) for quantile in REACT_QUANTILES),
    *(ASHS(quantile) for quantile in (0.65, 0.8, 0.9, 0.95)),
    *(SCALE(quantile) for quantile in (0.65, 0.8, 0.85, 0.9, 0.95)),
)
_WEIGHTS = (*(Ratios(w_min=share) for share in (0.1, 0.3, 0.5, 0.8)), Ratios(w_max=0.001), Ratios(w_max=0.005))
_NEURONS = (
    *(Ratios(o_min=share) for share in (0.1, 0.3, 0.5)),
    *(Ratios(o_max=share) for share in (0.01, 0.02, 0.05)),
)
_TIE = 0.005
_HOLDOUT_SLACK = 0.01
_SATURATED = 0.995
"""Class holdout at which the plain energy leaves nothing to gain: what is measured beyond is noise."""
_FINALISTS = 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was tried, and what was chosen.

    Attributes:
        energy: The trial of no pruning and no shaping (of the given shaping, where one was given).
        chosen: The trial that was chosen.
        trials: Every trial, in the order it was made.
        samples: ID samples judged by.
        source: What they were: ``"validation"`` or ``"training"`` samples.
        is_labelled: Whether their true labels were known.
        tried: Number of trials made; a saved detector keeps only two of them.

    """

    energy: Trial
    chosen: Trial
    trials: tuple[Trial, ...] = field(repr=False)
    samples: int
    source: str
    is_labelled: bool
    tried: int

    @property
    def gain(self) -> float:
        """Mean AUROC of class holdout over the plain energy's."""
        return self.chosen.mean_holdout - self.energy.mean_holdout

    @property
    def spread(self) -> float:
        """Standard deviation over the draws of that gain; 0 with a single draw."""
        gains = [mine - plain for mine, plain in zip(self.chosen.holdout, self.energy.holdout, strict=True)]
        if len(gains) < 2:
            return 0.0
        return math.sqrt(math.fsum((gain - self.gain) ** 2 for gain in gains) / (len(gains) - 1))

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads, as JSON values; of the trials, those of the energy and the chosen one."""
        return {
            "energy": self.energy.to_json(),
            "chosen": self.chosen.to_json(),
            "samples": self.samples,
            "source": self.source,
            "is_labelled": self.is_labelled,
            "tried": self.tried,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote; `trials` then holds the energy and the chosen one."""
        energy, chosen = Trial.from_json(values["energy"]), Trial.from_json(values["chosen"])
        return cls(**{**values, "energy": energy, "chosen": chosen, "trials": (energy, chosen)})


def tuned(fitted: Fitted, settings: Settings, judge: Judge, *, source: str, is_labelled: bool) -> Tuning:
    """Return the search's outcome.

    Args:
        fitted: Sensitivities, head and histogram of the training features.
        settings: What was given; its shaping is searched where automatic.
        judge: ID samples and draws.
        source: Where the samples come from, for the report.
        is_labelled: Whether their true labels were known.

    Returns:
        Every trial and the chosen one.

    """
    trials: dict[Settings, Trial] = {}

    def attempt(candidates: Iterable[Settings]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RatioWarning)
            warnings.simplefilter("ignore", SignedFeaturesWarning)
            for candidate in candidates:
                if candidate not in trials:
                    unpruned = trials.get(replace(plain, shaping=candidate.shaping))
                    with contextlib.suppress(RatioError):  # the share leaves nothing of so small a head
                        trials[candidate] = judge.trial(fitted, candidate, unpruned=unpruned)

    plain = settings.resolved()
    attempt([plain])
    energy = trials[plain]
    if energy.mean_holdout <= _SATURATED:
        if settings.shaping == "auto" and not judge.has_negative_features:
            attempt(replace(plain, shaping=shaping) for shaping in _SHAPINGS)
        finalists = sorted(_eligible(trials.values(), energy), key=lambda trial: -trial.value)[:_FINALISTS]
        for base in dict.fromkeys([plain, *(trial.settings for trial in finalists)]):
            attempt(_single(base, _WEIGHTS, scopes=True))
            attempt(_single(base, _NEURONS, scopes=False))
            attempt(_joined(base, trials, energy))
        attempt(_neighbours(_best(trials.values(), energy).settings))
    return Tuning(
        energy=energy,
        chosen=_best(trials.values(), energy),
        trials=tuple(trials.values()),
        samples=len(judge.features),
        source=source,
        is_labelled=is_labelled,
        tried=len(trials),
    )


def _eligible(trials: Iterable[Trial], energy: Trial) -> list[Trial]:
    """Return the trials that harm neither accuracy nor class holdout; the plain energy is always one."""
    return [
        trial
        for trial in trials
        if trial is energy or (trial.is_harmless and trial.mean_holdout >= energy.mean_holdout - _HOLDOUT_SLACK)
    ]


def _best(trials: Iterable[Trial], energy: Trial) -> Trial:
    """Return the least of the trials that are as good as the best one, within a tie."""
    eligible = _eligible(trials, energy)
    top = max(trial.value for trial in eligible)
    return min((trial for trial in eligible if trial.value >= top - _TIE), key=_amount)


def _amount(trial: Trial) -> tuple[bool, float, float]:
    """Return how much a setting does: shaping, share pruned, and then the worse value last."""
    ratios = trial.settings.fixed_ratios
    pruned = ratios.w_min + ratios.w_max + ratios.o_min + ratios.o_max
    return trial.settings.fixed_shaping is not None, pruned, -trial.value


def _single(base: Settings, choices: tuple[Ratios, ...], *, scopes: bool) -> Iterator[Settings]:
    """Yield the base with each choice of ratios of one layer, in both scopes or both neuron readings."""
    for ratios in choices:
        if scopes:
            yield replace(base, ratios=ratios, scope="layer")
            yield replace(base, ratios=ratios, scope="class")
        else:
            yield replace(base, ratios=ratios, neuron="gradient")
            yield replace(base, ratios=ratios, neuron="aggregate")


def _joined(base: Settings, trials: dict[Settings, Trial], energy: Trial) -> Iterator[Settings]:
    """Yield the best pruning of weights together with the best pruning of neurons under the base's shaping."""
    mine = [trial for trial in trials.values() if trial.settings.fixed_shaping == base.fixed_shaping]
    weights = [trial for trial in mine if trial.settings.fixed_ratios in _WEIGHTS]
    neurons = [trial for trial in mine if trial.settings.fixed_ratios in _NEURONS]
    best_weights, best_neurons = _eligible(weights, energy), _eligible(neurons, energy)
    if best_weights and best_neurons:
        first = max(best_weights, key=lambda trial: trial.value).settings
        second = max(best_neurons, key=lambda trial: trial.value).settings
        of_weights, of_neurons = first.fixed_ratios, second.fixed_ratios
        ratios = Ratios(of_weights.w_min, of_weights.w_max, of_neurons.o_min, of_neurons.o_max)
        yield replace(base, ratios=ratios, scope=first.scope, neuron=second.neuron)


def _neighbours(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with one ratio half as large, or half as large again."""
    ratios = settings.fixed_ratios
    for name in Ratios.__slots__:
        share = getattr(ratios, name)
        for factor in (0.5, 1.5):
            if 0 < share * factor < 0.95:
                yield replace(settings, ratios=replace(ratios, **{name: round(share * factor, 6)}))

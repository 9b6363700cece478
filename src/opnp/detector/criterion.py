"""How good a setting is, judged on ID samples alone: class holdout, thinned features, and two limits on harm.

Class holdout asks for classes the head does not know; two surrogates made of the same samples ask for inputs that lack
evidence (thinned: a share of the features is missing) and for inputs whose features do not belong together (scrambled:
half of them are those of other samples); and failure detection asks whether the score still tells where the original
head is likely to be wrong. The weighted log-odds of the four AUROCs are what is maximised. A setting is harmful, and
never chosen, if the shaped and pruned head answers worse by itself, or if it detects failures worse. Pruning is judged
more strictly than shaping: it must gain class holdout over the same shaping without it, cost no failure detection, and
not lift the logits as a whole. The energy of ID samples is insensitive to the weights that hold all other classes down;
inputs of no class are told by them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from opnp.core.checks import require_class_indices
from opnp.core.failure import failure_auroc
from opnp.core.holdout import class_draws, holdout_auroc
from opnp.core.metrics import auroc
from opnp.core.scores import energy_score, score_logits
from opnp.core.sensitivity import product_dtype
from opnp.core.shaping import ASHS, Shaping
from opnp.detector.fitting import Fitted, head_logits
from opnp.detector.ratios import Ratios
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Settings
from opnp.errors import EmptyDataError

__all__ = ["Judge", "Trial"]

_FEWEST_CLASSES = 10
_SHARES = (0.4, 0.5, 0.6, 0.7)
_DRAWS = 16
_THINNED_SHARE = 0.3
_SCRAMBLED_SHARE = 0.5
_SURROGATE_WEIGHT = 0.1
_FAILURE_WEIGHT = 0.65
_LARGEST_LOSS = 0.005
_LARGEST_FAILURE_LOSS = 0.03
_PRUNING_GAIN = 0.002
"""AUROC of class holdout that pruning must add to the same shaping without it.

Less is no gain on classes that were never seen. On intents of sentences the criterion liked prunings that lost up to
seven points of AUROC there; each of them gained less than this, or detected failures worse.
"""
_LARGEST_RISE = 0.1
"""Rise of the mean logit by pruning, in standard deviations of the energies of ID samples.

On the intents prunings that passed every other limit, and lost one to seven points of AUROC, lifted it by 0.8 to 1.6;
those that gained on MobileNetV2 lowered it by 0.01 to 0.02.
"""
_SATURATED = 1e-4
_LEAST_DOUBT = 1e-15
"""For a head so sure of every answer that its doubt rounds to zero: then all answers are equally doubtful."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what it is worth.

    Attributes:
        settings: The setting, nothing left automatic.
        holdout: AUROC of each draw of class holdout; with OOD validation data, the one AUROC against those.
        thinned: AUROC of samples against themselves with a share of their features missing.
        scrambled: AUROC of samples against themselves with a share of their features taken from others.
        failure: AUROC of telling wrong answers of the original head from right ones, by its own doubt.
        loss: ID accuracy that the shaped and pruned head loses by itself; without labels, share of changed answers.
        value: What is maximised.
        is_harmless: Whether loss and failure are within their limits, and pruning gains what it must.

    """

    settings: Settings
    holdout: tuple[float, ...]
    thinned: float
    scrambled: float
    failure: float
    loss: float
    value: float
    is_harmless: bool

    @property
    def mean_holdout(self) -> float:
        """Mean AUROC over the draws."""
        return math.fsum(self.holdout) / len(self.holdout)

    def to_json(self) -> dict[str, object]:
        """Return the trial as JSON values, for `from_json`."""
        return {**asdict(self), "settings": self.settings.to_json(), "holdout": list(self.holdout)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the trial that `to_json` wrote."""
        settings = Settings.from_json(values["settings"])
        return cls(**{**values, "settings": settings, "holdout": tuple(values["holdout"])})


@dataclass(frozen=True, eq=False, slots=True)
class Judge:
    """ID samples and draws, the same for every setting.

    Attributes:
        features: Shape ``(samples, features)``.
        thinned: The same with a random share of the entries zero.
        scrambled: The same with a random share of the entries taken from random other rows of their column.
        labels: Class indices, shape ``(samples,)``: true ones, or those the original head predicts.
        answers: Classes that the original head predicts, shape ``(samples,)``.
        kept: Draws of the classes that stay, shape ``(draws, classes)``.
        doubt: Probability that the original head's answer is wrong, by itself: 1 - max p, shape ``(samples,)``.
        largest_loss: Limit on the loss.
        smallest_failure: Limit on the failure AUROC: what the unpruned, unshaped head has, less three points.
        ood: Features of OOD validation samples that take the place of class holdout, or None.
        levels: By shaping, mean logit and standard deviation of the energies without pruning, as far as it was tried.

    """

    features: Tensor
    thinned: Tensor
    scrambled: Tensor
    labels: Tensor
    answers: Tensor
    kept: Tensor
    doubt: Tensor
    largest_loss: float
    smallest_failure: float
    ood: Tensor | None = None
    levels: dict[Shaping | None, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_samples(
        cls,
        features: Tensor,
        labels: Tensor | None,
        fitted: Fitted,
        settings: Settings,
        *,
        ood: Tensor | None,
        seed: int,
    ) -> Self:
        """Return the judge by these ID samples.

        The limit on the loss is half a point of accuracy, or the standard deviation sqrt(error / samples) of the share
        of errors, whichever is more: on few samples of a hard problem half a point is noise. For settings that remove
        something (weights, neurons, or features as ASH-S does) it is half of that: what the classifier does not need
        can go without changing its answers.

        Args:
            features: Shape ``(samples, features)``.
            labels: Class indices, shape ``(samples,)``; None to take those that the original head predicts.
            fitted: The head.
            settings: Precision.
            ood: Features of OOD validation samples, or None.
            seed: Seed of draws and thinning.

        Raises:
            EmptyDataError: If there are fewer than ten classes, too few for class holdout to choose by.
            OptionError: If a label is no class index of the head.

        """
        dtype = product_dtype(features, precision=settings.precision)
        features = features.to(dtype)
        logits = head_logits(features, fitted.weight, fitted.bias, precision=settings.precision)
        answers = logits.argmax(1)
        doubt = (1 - torch.softmax(logits.double(), 1).amax(1)).clamp_min(_LEAST_DOUBT)
        plain = score_logits(logits, score=settings.score, temperature=settings.temperature)
        if labels is None:
            error = float(doubt.mean())
            labels = answers
        else:
            require_class_indices(labels, classes=len(fitted.weight))
            labels = labels.to(features.device).long()
            error = int((answers != labels).sum()) / len(labels)
        generator = torch.Generator().manual_seed(seed)
        is_missing = torch.rand(features.shape, generator=generator) < _THINNED_SHARE
        is_foreign = torch.rand(features.shape, generator=generator) < _SCRAMBLED_SHARE
        others = torch.rand(features.shape, generator=generator).argsort(0)
        foreign = features.gather(0, others.to(features.device))
        kept = torch.ones(1, len(fitted.weight), dtype=torch.bool)
        if ood is None:
            if len(fitted.weight) < _FEWEST_CLASSES:
                raise EmptyDataError(
                    f"Class holdout chooses badly with fewer than {_FEWEST_CLASSES} classes, got {len(fitted.weight)}: "
                    f"give `validation_ood`, or fixed ratios"
                )
            kept = class_draws(labels, len(fitted.weight), shares=_SHARES, draws=_DRAWS, seed=seed)
        return cls(
            features=features,
            thinned=features.masked_fill(is_missing.to(features.device), 0.0),
            scrambled=torch.where(is_foreign.to(features.device), foreign, features),
            labels=labels,
            answers=answers,
            kept=kept,
            doubt=doubt,
            smallest_failure=failure_auroc(plain, doubt) - _LARGEST_FAILURE_LOSS,
            largest_loss=max(_LARGEST_LOSS, math.sqrt(error / len(features))),
            ood=None if ood is None else ood.to(features),
        )

    @property
    def has_negative_features(self) -> bool:
        """Whether there are features that the shapings are not made for."""
        return bool((self.features < 0).any()) or (self.ood is not None and bool((self.ood < 0).any()))

    def trial(self, fitted: Fitted, settings: Settings, *, unpruned: Trial | None = None) -> Trial:
        """Return what a setting is worth: weighted log-odds of class holdout, surrogates and failure detection.

        Args:
            fitted: The head.
            settings: The setting, nothing left automatic.
            unpruned: The trial of the same shaping without pruning, for a setting that prunes: what it must better.

        """
        scorer = Scorer.from_fitted(fitted, settings)
        logits = scorer.logits(self.features)
        scores = score_logits(logits, score=settings.score, temperature=settings.temperature)
        if unpruned is None:
            energies = energy_score(logits, temperature=settings.temperature)
            self.levels[settings.fixed_shaping] = (
                float(logits.mean(dtype=torch.float64)),
                float(energies.double().std()),
            )
        if self.ood is None:
            values = holdout_auroc(
                logits, self.labels, self.kept, score=settings.score, temperature=settings.temperature
            ).tolist()
        else:
            values = [auroc(scores, scorer.scores(self.ood))]
        thinned = auroc(scores, scorer.scores(self.thinned))
        scrambled = auroc(scores, scorer.scores(self.scrambled))
        answers = logits.argmax(1)
        is_removing = settings.fixed_ratios != Ratios() or isinstance(settings.fixed_shaping, ASHS)
        largest_loss = self.largest_loss / 2 if is_removing else self.largest_loss
        before, after = int((self.answers == self.labels).sum()), int((answers == self.labels).sum())
        loss = (before - after) / len(self.labels)
        failure = failure_auroc(scores, self.doubt)
        surrogates = _SURROGATE_WEIGHT * (_log_odds(thinned) + _log_odds(scrambled))
        besides = surrogates + _FAILURE_WEIGHT * _log_odds(failure)
        mean = math.fsum(values) / len(values)
        is_harmless = loss <= largest_loss
        if self.ood is None:
            is_harmless = is_harmless and failure >= self.smallest_failure
            if unpruned is not None:
                gain, rise = mean - unpruned.mean_holdout, self._rise(logits, settings)
                is_gain = gain >= _PRUNING_GAIN and failure >= unpruned.failure and rise <= _LARGEST_RISE
                is_harmless = is_harmless and is_gain
        return Trial(
            settings=settings,
            holdout=tuple(values),
            thinned=thinned,
            scrambled=scrambled,
            failure=failure,
            loss=loss,
            value=_log_odds(mean) + (besides if self.ood is None else 0.0),
            is_harmless=is_harmless,
        )

    def _rise(self, logits: Tensor, settings: Settings) -> float:
        """Return how far the mean logit lies above that without pruning, in standard deviations of the energies."""
        level, deviation = self.levels[settings.fixed_shaping]
        rise = float(logits.mean(dtype=torch.float64)) - level
        return rise / deviation if deviation > 0 else math.copysign(math.inf, rise) if rise else 0.0


def _log_odds(share: float) -> float:
    bounded = min(max(share, _SATURATED), 1 - _SATURATED)
    return math.log(bounded / (1 - bounded))

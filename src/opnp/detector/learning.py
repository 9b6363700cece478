"""One fit, step by step: the pass over the training data, what is held out, and the state that comes of it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from opnp.detector.choosing import chosen, react_quantiles, tuning_reservoir
from opnp.detector.fitting import Fitted, fitted_on
from opnp.detector.link import ModelLink
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Settings
from opnp.detector.state import State
from opnp.errors import NotFittedError

__all__ = ["Learning"]


class Learning:
    """Collects what a fit needs, in the order it arrives; a detector takes the outcome as a whole or not at all.

    Args:
        settings: The settings as given.
        is_held_out: Whether held-out ID samples will come; without them, training samples serve to choose by.

    """

    def __init__(self, settings: Settings, *, is_held_out: bool) -> None:
        """Start with nothing seen."""
        self._settings = settings
        self._is_held_out = is_held_out
        self._reservoir = tuning_reservoir()
        self._fitted: Fitted | None = None
        self._held_out: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._ood: list[Tensor] = []

    def fit(
        self, batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None]], weight: Tensor, bias: Tensor | None
    ) -> Fitted:
        """Take the sensitivities in one pass over (features, logits or None, labels or None), and return them."""
        needs_samples = self._settings.is_automatic and not self._is_held_out

        def pairs() -> Iterator[tuple[Tensor, Tensor | None]]:
            for features, logits, labels in batches:
                if needs_samples:
                    self._reservoir.show(features, labels)
                yield features, logits

        quantiles = react_quantiles(self._settings)
        self._fitted = fitted_on(pairs(), weight=weight, bias=bias, settings=self._settings, react_quantiles=quantiles)
        return self._fitted

    def hold_out(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Keep the features of held-out ID samples, to choose by; where nothing is to be chosen, only their scores."""
        if self._settings.is_automatic:
            for features, labels in batches:
                self._reservoir.show(features, labels)
                self._held_out.append(features.clone())  # a loader may use its buffer again
        else:
            scorer = Scorer.from_fitted(self._required(), self._settings.resolved())
            self._scores += (scorer.scores(features) for features, _ in batches)

    def hold_out_ood(self, batches: Iterable[Tensor]) -> None:
        """Keep the features of OOD samples to choose by."""
        self._ood += (features.clone() for features in batches)  # as above

    def state(self, link: ModelLink | None, *, keep: float) -> State:
        """Return the fitted state, chosen and calibrated as far as there was something to do it by."""
        fitted, settings, tuning = self._required(), self._settings.resolved(), None
        if self._settings.is_automatic:
            ood = torch.cat(self._ood) if self._ood else None
            settings, tuning = chosen(fitted, self._settings, self._reservoir, is_held_out=self._is_held_out, ood=ood)
        scorer = Scorer.from_fitted(fitted, settings)
        origin = (None, None) if link is None else (link.head.name, link.axes)
        state = State(fitted, scorer, link, tuning=tuning, head_name=origin[0], axes=origin[1])
        if not self._is_held_out:
            return state
        scores = self._scores or [scorer.scores(features) for features in self._held_out]
        return state.calibrated(scores, keep=keep)

    def _required(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError("Nothing was fitted: `fit` comes first.")
        return self._fitted

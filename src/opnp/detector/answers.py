"""What a fitted detector answers: scores, p-values and verdicts, of inputs or of features."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from opnp.core.checks import checked_matrix, require_finite
from opnp.core.masks import Masks
from opnp.core.scores import LARGEST_FLOAT32_TEMPERATURE, score_logits
from opnp.core.sensitivity import Sensitivity, product_dtype
from opnp.detector.blocks import feature_blocks
from opnp.detector.compact import CompactHead
from opnp.detector.exported import DetectorModule
from opnp.detector.link import ModelLink, head_digest, linked_by_digest
from opnp.detector.model_card import card_text
from opnp.detector.ratios import Ratios
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Settings
from opnp.detector.state import State
from opnp.detector.sweeping import swept
from opnp.detector.verdicts import Calibration, Verdict
from opnp.errors import NotCalibratedError, NotFittedError, OptionError

__all__ = ["Answers"]


class Answers:
    """The questions that a detector answers once it is fitted; how it gets there is the subclass's affair."""

    _state: State | None = None

    def score(self, inputs: object) -> Tensor:
        """Return the score of a batch of inputs, shape ``(batch,)``, or of one input, shape ``()``. Larger = more OOD.

        Args:
            inputs: A batch as the training loader yields them (labels are ignored), or one input without a batch axis.

        Returns:
            Scores, on the model's device; float32, or float64 in that precision and at a temperature above 1000.

        Raises:
            NotFittedError: If nothing was fitted, or there is no model.
            NonFiniteError: If features are not finite.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        features, is_single = self._linked().features_of(inputs)
        return _released(self._fitted().scorer.scores(features), is_single=is_single)

    def score_features(self, features: Tensor) -> Tensor:
        """Return the score of features, shape ``(batch, features)`` or ``(features,)``, as `score` does of inputs."""
        rows, is_single = self._checked(features)
        return _released(self._fitted().scorer.scores(rows), is_single=is_single)

    def p_value(self, inputs: object) -> Tensor:
        """Return the conformal p-value of one batch of inputs, or of one input: small = OOD.

        For ID inputs exchangeable with the calibration samples, P(p <= a) <= a for every a.

        Args:
            inputs: As for `score`.

        Returns:
            p-values in [1/(n + 1), 1] for n calibration samples, shape ``(batch,)`` or ``()``, float64.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        return self._calibration().p_value(self.score(inputs))

    def p_value_features(self, features: Tensor) -> Tensor:
        """Return the p-value of features, shape ``(batch, features)`` or ``(features,)``, as `p_value` of inputs."""
        return self._calibration().p_value(self.score_features(features))

    def predict(self, inputs: object) -> Tensor:
        """Return whether each input is flagged as OOD, for one batch of inputs or one input.

        Flagged is a p-value of at most 1 - keep, decided by integer rank among the calibration scores.

        Args:
            inputs: As for `score`.

        Returns:
            True = OOD, shape ``(batch,)`` or ``()``, bool.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        return self._calibration().is_ood(self.score(inputs))

    def predict_features(self, features: Tensor) -> Tensor:
        """Return the verdict on features, shape ``(batch, features)`` or ``(features,)``, as `predict` on inputs."""
        return self._calibration().is_ood(self.score_features(features))

    def verdict(self, inputs: object) -> Verdict:
        """Return predicted class, score, p-value and verdict of one batch of inputs, or of one input, in one pass.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        calibration = self._calibration()
        return _verdict(self._fitted().scorer, calibration, *self._linked().features_of(inputs))

    def verdict_features(self, features: Tensor) -> Verdict:
        """Return predicted class, score, p-value and verdict of features, as `verdict` does of inputs."""
        return _verdict(self._fitted().scorer, self._calibration(), *self._checked(features))

    def classify_features(self, features: Tensor) -> Tensor:
        """Return the class that the original head predicts, shape ``(batch,)`` or ``()``, int64."""
        rows, is_single = self._checked(features)
        return _released(self._fitted().scorer.classes(rows), is_single=is_single)

    def sweep_features(self, features: Tensor, ratios: Sequence[Ratios]) -> Tensor:
        """Return the scores of features under many ratios, the other settings as they are, faster than one by one.

        Args:
            features: Shape ``(batch, features)``.
            ratios: The ratios to try.

        Returns:
            Scores, shape ``(ratios, batch)``: row by row those that `with_ratios` would give, up to rounding.

        Raises:
            NotFittedError: If nothing was fitted.
            RatioError: If any of the ratios leaves nothing of the head, or cuts among sensitivities too small for
                float64: there are no scores then, of the other ratios neither.
            OptionError: If `ratios` is empty, or no list of them.

        """
        state = self._fitted()
        rows, _ = self._checked(features)
        if not isinstance(ratios, Sequence) or not ratios or not all(isinstance(each, Ratios) for each in ratios):
            raise OptionError(f"`ratios` must be a list of one or more Ratios(...), got {ratios!r}.")
        present = state.scorer.settings
        settings = [replace(present, ratios=each) for each in ratios]
        found = dict(swept(state.fitted, settings, rows, _score))
        dtype = product_dtype(rows, precision=present.precision)
        if present.score != "max_logit" and present.temperature > LARGEST_FLOAT32_TEMPERATURE:
            dtype = torch.float64
        return torch.stack([found[place][0] for place in range(len(settings))]).to(dtype)

    @property
    def sensitivity(self) -> Sensitivity:
        """Sensitivities of the head's weights and inputs, float64."""
        return self._fitted().fitted.sensitivity

    @property
    def masks(self) -> Masks:
        """What stays of the head: True = keep."""
        return self._fitted().scorer.masks

    @property
    def pruned_head(self) -> nn.Linear:
        """The pruned head as a new, plain `nn.Linear` with the dtype of the original and no gradient."""
        return self._fitted().scorer.pruned_head()

    @property
    def original_head(self) -> nn.Linear:
        """The head that the detector was fitted on, as a new, plain `nn.Linear` with no gradient."""
        return self._fitted().scorer.original_head()

    def compact_head(self) -> CompactHead:
        """Return the pruned head without the columns of which nothing is left: full features in, the same logits out.

        It holds the kept columns as `head`, a plain `nn.Linear`, and their positions as `index`. It saves memory and
        time where neurons were pruned; where only single weights were, `pruned_head` does as well.

        Raises:
            NotFittedError: If nothing was fitted.

        """
        return CompactHead.from_head(self.pruned_head, self.masks)

    def to_module(self, model: nn.Module | None = None) -> DetectorModule:
        """Return model and detector as one module: inputs in, (logits, score, p_value) out.

        The module holds a copy of the model, in eval mode, and the calibration; `torch.export` takes it.

        Args:
            model: The model that the detector was fitted on; None for the one it is tied to.

        Returns:
            The module, on the model's device.

        Raises:
            NotFittedError: If nothing was fitted, or there is no model.
            NotCalibratedError: If the detector is not calibrated.
            HeadMismatchError: If no layer of the model is the head that the detector was fitted on.
            InputTypeError: If the model cannot be copied.

        Example:
            >>> from opnp import OPNP, Ratios
            >>> model, inputs = nn.Linear(4, 3), torch.rand(100, 4)
            >>> detector = OPNP(ratios=Ratios(w_min=0.25)).fit(model, [inputs]).calibrate([inputs])
            >>> logits, score, p_value = detector.to_module()(inputs)
            >>> torch.equal(score, detector.score(inputs)), torch.equal(p_value, detector.p_value(inputs))
            (True, True)

        """
        calibration, state = self._calibration(), self._fitted()
        if model is None:
            return DetectorModule(self._linked(), state.scorer, calibration)
        weight, bias = state.fitted.weight, state.fitted.bias
        link = linked_by_digest(model, weight=weight, bias=bias, name=state.head_name, axes=state.axes)
        return DetectorModule(link, state.scorer, calibration)

    def model_card(self, *, inputs: Mapping[str, object] | None = None) -> str:
        """Return a model card in Markdown: what the detector is, how it was made, and what it promises.

        Args:
            inputs: What is known of how inputs are prepared, as JSON values, to be written down with the rest.

        Raises:
            NotFittedError: If nothing was fitted.

        """
        return card_text(self._fitted(), inputs=inputs)

    @property
    def head_digest(self) -> str:
        """SHA-256 of the head that the detector was fitted on: over dtype, shape and values of weight and bias."""
        fitted = self._fitted().fitted
        return head_digest(fitted.weight, fitted.bias)

    @property
    def threshold(self) -> float:
        """Score above which an input is flagged."""
        return self._calibration().threshold

    @property
    def keep(self) -> float:
        """Share of ID inputs that is not flagged, in expectation at least."""
        return self._calibration().keep

    @property
    def calibration_scores(self) -> Tensor:
        """Scores of the calibration samples, ascending, shape ``(n,)``, float64."""
        return self._calibration().scores

    @property
    def is_fitted(self) -> bool:
        """Whether sensitivities were taken."""
        return self._state is not None

    @property
    def is_calibrated(self) -> bool:
        """Whether verdicts can be given."""
        return self._state is not None and self._state.calibration is not None

    def _fitted(self) -> State:
        if self._state is None:
            raise NotFittedError(
                "This detector has seen no data: call `fit(model, loader)` or `fit_features(...)` first."
            )
        return self._state

    def _linked(self) -> ModelLink:
        link = self._fitted().link
        if link is None:
            raise NotFittedError(
                "This detector has no model: it was fitted from features, or loaded without one. Use the `*_features` "
                "methods, or `OPNP.load(path, model=...)`.",
            )
        return link

    def _calibration(self) -> Calibration:
        calibration = self._fitted().calibration
        if calibration is None:
            raise NotCalibratedError(
                "This detector is not calibrated, so it can score but give no p-value and no verdict: call "
                "`calibrate(loader)` or `calibrate_features(features)` with held-out ID inputs.",
            )
        return calibration

    def _checked(self, features: Tensor) -> tuple[Tensor, bool]:
        is_single = isinstance(features, Tensor) and features.ndim == 1
        rows = features[None] if is_single else features
        checked_matrix(rows, name="features", axes="(batch, features)")
        feature_blocks(rows, self._fitted().fitted.weight)
        require_finite(rows, name="features")
        return rows.detach(), is_single


def _score(logits: Tensor, settings: Settings) -> tuple[Tensor]:
    return (score_logits(logits, score=settings.score, temperature=settings.temperature),)


def _verdict(scorer: Scorer, calibration: Calibration, features: Tensor, is_single: bool) -> Verdict:  # noqa: FBT001  # the pair that `features_of` returns
    scores = scorer.scores(features)
    values = (scorer.classes(features), scores, calibration.p_value(scores), calibration.is_ood(scores))
    return Verdict(*(_released(value, is_single=is_single) for value in values))


def _released(values: Tensor, *, is_single: bool) -> Tensor:
    """Return the values of a batch, or the single value of one input."""
    return values[0] if is_single else values

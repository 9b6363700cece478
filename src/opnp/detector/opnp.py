"""The detector: a thin shell round pure functions that holds what one pass over the data left."""

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Self, get_args

import torch
from torch import Tensor, nn

from opnp.core.checks import (
    MAY_BE_TRANSPOSED,
    Array,
    as_tensor,
    checked_head,
    checked_matrix,
    require_finite,
    two_class_head,
)
from opnp.core.labels import AnswerSum
from opnp.core.masks import Masks, Scope
from opnp.core.scores import LARGEST_FLOAT32_TEMPERATURE, ScoreName
from opnp.core.sensitivity import NeuronReading, Precision, Sensitivity, product_dtype, with_float64
from opnp.core.shaping import Shaping
from opnp.data import FeatureSource, feature_names_of
from opnp.detector.attachment import ModelLink, linked_by_digest
from opnp.detector.fit_pass import (
    BATCH_ROWS,
    Checkpoint,
    FitSum,
    Progress,
    added_up,
    counted,
    feature_blocks,
    require_same_names,
    shown,
    summed_blocks,
)
from opnp.detector.settings import Tuned, settings_from
from opnp.detector.storage import read_detector, state_bytes, state_from_bytes, write_detector
from opnp.detector.tuning import Part, own_score, swept, tuned
from opnp.distributed import Ranks, require_equal, sent_by_first, together
from opnp.errors import LabelWarning, NotCalibratedError, NotFittedError, OptionError
from opnp.export import CompactHead, DetectorModule, card_text
from opnp.export.module import plain_head
from opnp.fitted import (
    Calibration,
    CalibrationGroup,
    Explanation,
    FittedState,
    Ratios,
    Settings,
    Tuning,
    Verdict,
)
from opnp.model import BatchHalving, InputAxes, LogitsSelector, head_stream
from opnp.values.origin import ModelOrigin
from opnp.values.settings import CalibratedBy

__all__ = ["OPNP"]

_KEEP = 0.95
_Labelled = tuple[Tensor, Tensor | None]
"""Features, and the labels of their samples, or None."""


class OPNP:
    """Out-of-distribution detector of a trained classifier, from one pass over its training data.

    `OPNP()` fuses scores of different mechanism, the paper's pruned head among them, each in units of its own tail on
    training samples. `OPNP(ratios=Ratios(...))` is the paper's method alone, optimal parameter and neuron pruning: the
    weights and neurons that the energy is least and most sensitive to are removed, and inputs are scored by the energy
    of what is left. Scores: larger = more OOD. The model is never changed, and its predicted class stays that of the
    original head.

    Args:
        members: Names of the scores to fuse, of `opnp.MEMBERS`; None for `opnp.PANEL`. Not together with the options
            of the paper's method, which are the following ones.
        ratios: Shares of weights and neurons to remove; or ``"tuned"``: chosen on OOD validation data. Where another
            option of the paper's method is given and this is not: none.
        neuron: Reading of the neuron sensitivity: ``"gradient"`` (the default), the mean of |dE/dh|, or
            ``"aggregate"``, the column mean of the weight sensitivity.
        scope: Rank all weights together (``"layer"``, the paper and the default) or each class's row by itself
            (``"class"``).
        temperature: Temperature T of the energy, above 0; 1 by default.
        score: What is read off the pruned head's logits: ``"energy"`` (the default), ``"msp"``, ``"max_logit"``,
            ``"entropy"`` or ``"gen"``.
        shaping: What is done to the features before the pruned head: nothing by default, ``ReAct(...)``, ``ASHS(...)``
            or ``SCALE(...)``.
        precision: Precision of the products. Sums are float64 in either case; ``"float64"`` makes masks equal however
            the data are cut into batches.

    Raises:
        OptionError: If an option is out of range, or options do not go together.

    Example:
        >>> import torch
        >>> from opnp import OPNP, Ratios
        >>> _ = torch.manual_seed(0)
        >>> weight, bias = torch.randn(3, 8), torch.zeros(3)
        >>> training, held_out = torch.rand(200, 8), torch.rand(100, 8)
        >>> detector = OPNP().fit_features(training, weight=weight, bias=bias)
        >>> _ = detector.calibrate_features(held_out, keep=0.95)
        >>> detector.predict_features(torch.stack([held_out[0], -10 * torch.ones(8)])).tolist()
        [False, True]
        >>> paper = OPNP(ratios=Ratios(w_min=0.25)).fit_features(training, weight=weight, bias=bias)
        >>> int((paper.pruned_head.weight == 0).sum())
        6

    References:
        Chen et al., "Optimal Parameter and Neuron Pruning for Out-of-Distribution Detection", NeurIPS 2023. The fusion
        and what it is worth: docs/explanation/results.md.

    """

    def __init__(
        self,
        *,
        members: Sequence[str] | None = None,
        ratios: Ratios | Tuned | None = None,
        neuron: NeuronReading | None = None,
        scope: Scope | None = None,
        temperature: float | None = None,
        score: ScoreName | None = None,
        shaping: Shaping | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Store the options."""
        self._given = settings_from(
            members=members,
            ratios=ratios,
            neuron=neuron,
            scope=scope,
            temperature=temperature,
            score=score,
            shaping=shaping,
            precision=precision,
        )
        self._is_tuned = ratios == "tuned"
        self._searched = (scope is None, neuron is None)
        self._state: FittedState | None = None
        self._link: ModelLink | None = None
        """How the original head answered labelled samples, by what these were for."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return an unfitted detector with these settings, such as `settings` of another one."""
        detector = cls()
        detector._given = settings
        return detector

    # ------------------------------------------------------------------------------------------------------- fitting

    def fit(
        self,
        model: nn.Module,
        loader: Iterable[object],
        *,
        head: str | nn.Module | None = None,
        logits: LogitsSelector | None = None,
        validation: Iterable[object] | None = None,
        validation_ood: Iterable[object] | None = None,
        keep: float = _KEEP,
        by: CalibratedBy | None = None,
        device: torch.device | str | None = None,
        auto_batch: bool = False,
        distributed: bool = False,
        progress: Progress = None,
    ) -> Self:
        """Go over the training data once with the model, and return self.

        Args:
            model: Any classifier that ends in an `nn.Linear` or equal 1x1 convolution. It stays as it is, to the bit.
            loader: Training batches: tensors, (inputs, labels), or mappings; no labels are needed.
            head: The last layer or its dotted name; None to find it by running one batch.
            logits: Where the logits are in the model's output: index of a tuple, key or attribute, or a function of it.
            validation: Batches of held-out ID inputs: the detector is calibrated on them. With tuned ratios a half of
                them is searched on, and the other calibrates.
            validation_ood: Batches of OOD inputs that tuned ratios are chosen by; for those alone.
            keep: Share of ID inputs not to flag, in (0, 1), with `validation`; as for `calibrate`.
            by: What calibration samples are grouped by, with `validation`; as for `calibrate`.
            device: Where to run; None for where the model is.
            auto_batch: Whether to run a batch that needs more memory than there is in halves, with a warning; then
                this detector does so later on as well. The sums are those of the whole batch.
            distributed: Whether the ranks of torch's default process group fit together: each goes through a `loader`
                of its own part of the data, rank 0 alone reads what is held out, and all come to the same detector.
            progress: Wrapper of iterables that shows progress, such as `tqdm.tqdm`; True for a bar.

        Returns:
            This detector.

        Raises:
            HeadNotFoundError: If the head is not found.
            OptionError: If `logits` leads nowhere, or held-out data are missing or not wanted.
            DistributedError: If another rank fails or is lost.
            EmptyDataError: If there is no batch, or too little to fuse scores by.
            NonFiniteError: If features or logits are not finite.
            InputTypeError: If batches cannot be read, or the model refuses their dtype.
            InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.
            RatioError: If the ratios leave nothing of this head.
            CalibrationError: If `validation` holds too few samples for `keep`: fewer than 19 at 0.95.

        Warns:
            LabelWarning: If labels are known, and the model's answers contradict them.
            MemberWarning: If a score cannot be fused.
            RatioWarning: If a ratio removes nothing, or cuts among sensitivities that underflowed.

        """
        ranks = Ranks.joined() if distributed else Ranks()
        _require_grouping(by)
        self._require_held_out(validation is not None, validation_ood is not None, ranks)
        halving, batches = BatchHalving(is_on=auto_batch), shown(loader, progress)
        opened = head_stream(model, batches, head=head, logits=logits, device=device, halving=halving)
        with together(ranks), opened as stream:
            weight, bias = _own_head(stream.head.weight, stream.head.bias)
            rows = (
                (with_float64(features), with_float64(outputs), labels) for features, outputs, labels in stream.batches
            )
            total = FitSum.of(rows, weight, bias, self._given)
            link = ModelLink(model, stream.head, stream.axes, device, weight=weight, bias=bias, halving=halving)
        self._state = self._ended(
            total,
            None if validation is None else link.feature_batches(shown(validation, progress)),
            None if validation_ood is None else link.feature_batches(shown(validation_ood, progress), is_inside=False),
            keep=keep,
            by=by,
            ranks=ranks,
            origin=(link.head.name, link.axes),
        )
        self._link = link
        return self

    def fit_features(
        self,
        features: Array | FeatureSource,
        *,
        weight: Array,
        bias: Array | None,
        validation: Array | FeatureSource | None = None,
        validation_ood: Array | FeatureSource | None = None,
        keep: float = _KEEP,
        by: CalibratedBy | None = None,
        batch_size: int = BATCH_ROWS,
        checkpoint: Checkpoint | None = None,
        distributed: bool = False,
        progress: Progress = None,
    ) -> Self:
        """Go over cached features of the training data once, and return self.

        Args:
            features: Inputs of the head, shape ``(batch, features)``, any floating dtype, a tensor or a NumPy array; or
                a source of them, such as `opnp.data.open_features` gives, which is read block by block and never held
                as a whole.
            weight: The head's weight, shape ``(classes, features)``, a tensor or a NumPy array; of a single logit z
                that of the two classes with the logits -z/2 and z/2 is taken. A kernel of Keras or JAX is its
                transpose, which the shape tells unless there are as many classes as features: then labels of
                `features` or `validation` show it, as a low `id_accuracy` and mostly a LabelWarning, and without
                labels nothing does.
            bias: The head's bias, shape ``(classes,)``, or None.
            validation: Features of held-out ID inputs, shape ``(batch, features)``, or a source: the detector is
                calibrated on them. With tuned ratios a half of them is searched on, and the other calibrates.
            validation_ood: Features of OOD inputs that tuned ratios are chosen by; for those alone.
            keep: Share of ID inputs not to flag, in (0, 1), with `validation`; as for `calibrate`.
            by: What calibration samples are grouped by, with `validation`; as for `calibrate`.
            batch_size: Rows that are read and multiplied at once.
            checkpoint: Where to write down how far the pass has come, and to go on from; None for nowhere. The file
                stays: `checkpoint.remove()` once the detector is saved.
            distributed: As for `fit`, each rank with its own part of `features`, in rank order.
            progress: Wrapper of iterables that shows progress; True for a bar.

        Returns:
            This detector.

        Raises:
            CheckpointError: If the checkpoint is damaged, or one of another run.
            DistributedError: If another rank fails or is lost.
            OptionError: If held-out data are missing or not wanted.
            ShapeError: If the shapes do not fit together, or there are fewer than two classes.
            EmptyDataError: If there are no rows, or too few to fuse scores by.
            NonFiniteError: If features or head are not finite.
            RatioError: If the ratios leave nothing of this head.
            CalibrationError: If `validation` holds too few samples for `keep`: fewer than 19 at 0.95.

        Warns:
            LabelWarning: If labels are known, and the model's answers contradict them.
            MemberWarning: If a score cannot be fused.
            RatioWarning: If a ratio removes nothing, or cuts among sensitivities that underflowed.

        """
        ranks = Ranks.joined() if distributed else Ranks()
        _require_grouping(by)
        self._require_held_out(validation is not None, validation_ood is not None, ranks)
        with together(ranks):
            weight, bias = _own_head(weight, bias)
            blocks = feature_blocks(features, weight, size=batch_size, is_part=not ranks.is_alone)
            names = feature_names_of(features)
            known, ood = (
                nullcontext(
                    feature_blocks(
                        given, weight, name=name, is_inside=name == "validation", feature_names=names
                    ).labelled()
                )
                if ranks.is_first and given is not None
                else None
                for name, given in (("validation", validation), ("validation_ood", validation_ood))
            )
            zeros = FitSum.zeros(weight, bias, self._given)
        require_equal(str(names), ranks, what="features called")
        with together(ranks):
            total = summed_blocks(blocks, zeros, ranks=ranks, checkpoint=checkpoint, progress=progress)
        self._state = self._ended(total, known, ood, keep=keep, by=by, ranks=ranks).restated(feature_names=names)
        self._link = None
        return self

    def fit_sum(
        self,
        total: FitSum,
        *,
        head_name: str | None = None,
        axes: InputAxes | None = None,
        feature_names: tuple[str, ...] | None = None,
    ) -> Self:
        """Take what passes over the training data have left elsewhere, added up, and return self.

        Args:
            total: The sum over all training samples, of `settings` of this detector.
            head_name: The head's dotted name in its model; None where features were summed.
            axes: Number of axes of a batch of inputs; None where features were summed.
            feature_names: Names of the features, where they are columns of a table.

        Returns:
            This detector, without a model; uncalibrated.

        Raises:
            OptionError: If the sum is one of other settings, or ratios are to be tuned.
            EmptyDataError: If there are no samples, or too few to fuse scores by.
            NonFiniteError: If sums or thresholds are not finite.
            RatioError: If the ratios leave nothing of this head.

        Warns:
            LabelWarning: If labels are known, and the model's answers contradict them.
            MemberWarning: If a score cannot be fused.

        Example:
            >>> from opnp.detector.fit_pass import FitSum
            >>> rows, weight = torch.rand(300, 4), torch.eye(4)[:3]
            >>> parts = [FitSum.of([(part, None)], weight, None, OPNP().settings) for part in rows.split(100)]
            >>> OPNP().fit_sum(parts[0] + parts[1] + parts[2]).samples
            300

        """
        self._require_held_out(has_known=False, has_ood=False, ranks=Ranks())
        if total.settings != self._given:
            raise OptionError("`total` must be a sum for the settings of this detector, got one for others.")
        state = self._ended(total, None, None, keep=_KEEP, by=None, ranks=Ranks(), origin=(head_name, axes))
        self._state, self._link = state.restated(feature_names=feature_names), None
        return self

    def calibrate(
        self,
        loader: Iterable[object],
        *,
        keep: float = _KEEP,
        by: CalibratedBy | None = None,
        progress: Progress = None,
    ) -> Self:
        """Score held-out ID inputs, so that verdicts keep the share `keep` of ID; return self.

        The inputs must be exchangeable with the ID inputs to come, and none may have been trained on. Calibrating
        again replaces the calibration; nothing is refitted, and no score changes.

        With `by="predicted"` the share holds for the inputs predicted as each class, so that no class is flagged more
        often than promised because its scores are larger. A class that fewer samples were predicted as than the level
        needs, `minimum_samples(keep=keep)`, shares a group called "pooled" with the others like it, for which the share
        holds together; where these are too few as well, the smallest of the other classes joins them.
        `calibration_groups` names the groups.

        Args:
            loader: Batches of held-out ID inputs.
            keep: Share of ID inputs not to flag, in (0, 1): at least this share in expectation.
            by: ``"predicted"`` to compare an input with the samples of its predicted class; None with all samples.
            progress: Wrapper of iterables that shows progress; True for a bar.

        Returns:
            This detector.

        Raises:
            NotFittedError: If nothing was fitted, or there is no model.
            OptionError: If `keep` lies outside (0, 1), or `by` is neither None nor ``"predicted"``.
            CalibrationError: If there are too few samples for this `keep`: fewer than 19 at 0.95.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        _require_grouping(by)
        self._state = self._calibrated(self._linked().feature_batches(shown(loader, progress)), keep=keep, by=by)
        return self

    def calibrate_features(
        self, features: Array | FeatureSource, *, keep: float = _KEEP, by: CalibratedBy | None = None
    ) -> Self:
        """Calibrate as `calibrate` does, from features of held-out ID inputs, or a source of them; return self.

        Raises:
            NotFittedError: If nothing was fitted.
            OptionError: If `keep` lies outside (0, 1), or `by` is neither None nor ``"predicted"``.
            CalibrationError: If there are too few samples for this `keep`.
            ShapeError: If the width is not the head's.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> training, head = torch.rand(400, 8), torch.randn(3, 8)
            >>> detector = OPNP().fit_features(training[:200], weight=head, bias=None)
            >>> _ = detector.calibrate_features(training[200:], by="predicted")
            >>> [(group.name, group.classes, group.samples) for group in detector.calibration_groups]
            [('class 0', (0,), 161), ('pooled', (1, 2), 39)]

        """
        _require_grouping(by)
        state = self._fitted()
        blocks = feature_blocks(features, state.weight, feature_names=state.feature_names).labelled()
        self._state = self._calibrated(nullcontext(blocks), keep=keep, by=by)
        return self

    def with_ratios(self, ratios: Ratios, *, neuron: NeuronReading | None = None, scope: Scope | None = None) -> Self:
        """Return a new detector of the paper's method with other ratios, from the same sensitivities and no new pass.

        Every other setting stays. Of a fusion it is the pruned head alone, read by its energy under SCALE as in the
        fusion. Calibration belongs to the scores of one setting: the new detector has none. Call `calibrate` on it.

        Args:
            ratios: The new ratios.
            neuron: Another reading of the neuron sensitivity; None for the present one.
            scope: Another scope of the ranking; None for the present one.

        Returns:
            A fitted, uncalibrated detector that shares the sensitivities and the model with this one.

        Raises:
            NotFittedError: If nothing was fitted.
            RatioError: If the ratios leave nothing of this head.

        """
        state = self._fitted()
        if not isinstance(ratios, Ratios):
            raise OptionError(f"`ratios` must be a Ratios(...), got {ratios!r}.")
        present = state.settings
        settings = replace(
            present, members=None, ratios=ratios, neuron=neuron or present.neuron, scope=scope or present.scope
        )
        state = state.with_settings(settings)
        state.pruned  # noqa: B018  # ratios that leave nothing are refused here, not at the first score
        return self._holding(state, self._link)

    def with_tuned_ratios(
        self,
        validation: Array,
        validation_ood: Array,
        *,
        neuron: NeuronReading | None = None,
        scope: Scope | None = None,
        parts: Collection[Part] = get_args(Part),
        keep: float = _KEEP,
    ) -> Self:
        """Return a new detector whose ratios OOD validation data choose, from the same sensitivities and no new pass.

        As with ``OPNP(ratios="tuned")``: half of the samples is searched on; the other half measures the gain, and its
        ID samples calibrate.

        Args:
            validation: Features of held-out ID samples, shape ``(samples, features)``.
            validation_ood: Features of OOD samples that are no part of any test, shape ``(samples, features)``.
            neuron: Reading of the neuron sensitivity; None to search over both.
            scope: Scope of the ranking of the weights; None to search over both.
            parts: What may be removed: ``weights`` (OPP), ``neurons`` (ONP), or both (OPNP).
            keep: Share of ID inputs not to flag, in (0, 1).

        Returns:
            A fitted and calibrated detector that shares the sensitivities and the model with this one.

        Raises:
            NotFittedError: If nothing was fitted.
            EmptyDataError: If there are fewer than 40 samples of either kind.
            NonFiniteError: If features are not finite.
            CalibrationError: If there are too few ID samples for `keep`.

        """
        rows = [self._checked(each)[0] for each in (validation, validation_ood)]
        start = self.with_ratios(Ratios(), neuron=neuron, scope=scope)._fitted()  # noqa: SLF001  # of its own class
        state, rest = tuned(start, *rows, searched=(scope is None, neuron is None), parts=parts)
        return self._holding(state.calibrated([rest], keep=keep), self._link)

    # ------------------------------------------------------------------------------------------------------- answers

    def score(self, inputs: object) -> Tensor:
        """Return the score of each input, shape ``(inputs,)``, or of one input, shape ``()``. Larger = more OOD.

        Args:
            inputs: A batch as the training loader yields them (labels are ignored); one input without a batch axis; or
                a whole loader, a `DataLoader` or a generator of batches, which is answered in its order.

        Returns:
            Scores, on the model's device; of a fusion float64, and +inf where a member is not finite. Of the paper's
            method float32, or float64 in that precision and at a temperature above 1000.

        Raises:
            NotFittedError: If nothing was fitted, or there is no model.
            NonFiniteError: If features are not finite.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        (scores,) = self._linked().answers(inputs, lambda features: (self._fitted().scores(features),))
        return scores

    def score_features(self, features: Array) -> Tensor:
        """Return the score of features, shape ``(batch, features)`` or ``(features,)``, as `score` does of inputs."""
        rows, is_single = self._checked(features)
        return _released(self._fitted().scores(rows), is_single=is_single)

    def p_value(self, inputs: object) -> Tensor:
        """Return the conformal p-value of a batch, of one input or of a whole loader: small = OOD.

        For ID inputs exchangeable with the calibration samples, P(p <= a) <= a for every a; calibrated by class, among
        the inputs of each group of classes too.

        Args:
            inputs: As for `score`.

        Returns:
            p-values in [1/(n + 1), 1] for n calibration samples, by class those of the input's group, shape
            ``(inputs,)`` or ``()``, float64.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        self._calibration()
        (p_values,) = self._linked().answers(inputs, lambda features: (self._judged(features, Calibration.p_value),))
        return p_values

    def p_value_features(self, features: Array) -> Tensor:
        """Return the p-value of features, shape ``(batch, features)`` or ``(features,)``, as `p_value` of inputs."""
        self._calibration()
        rows, is_single = self._checked(features)
        return _released(self._judged(rows, Calibration.p_value), is_single=is_single)

    def predict(self, inputs: object) -> Tensor:
        """Return whether each input is flagged as OOD, for a batch, one input or a whole loader.

        Flagged is a p-value of at most 1 - keep, decided by integer rank among the calibration scores.

        Args:
            inputs: As for `score`.

        Returns:
            True = OOD, shape ``(inputs,)`` or ``()``, bool.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        self._calibration()
        (flags,) = self._linked().answers(inputs, lambda features: (self._judged(features, Calibration.is_ood),))
        return flags

    def predict_features(self, features: Array) -> Tensor:
        """Return the verdict on features, shape ``(batch, features)`` or ``(features,)``, as `predict` on inputs."""
        self._calibration()
        rows, is_single = self._checked(features)
        return _released(self._judged(rows, Calibration.is_ood), is_single=is_single)

    def verdict(self, inputs: object) -> Verdict:
        """Return predicted class, score, p-value and verdict of a batch, one input or a whole loader, in one pass.

        Args:
            inputs: As for `score`.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        self._calibration()
        return Verdict(*self._linked().answers(inputs, self._verdict))

    def verdict_features(self, features: Array) -> Verdict:
        """Return predicted class, score, p-value and verdict of features, as `verdict` does of inputs."""
        self._calibration()
        rows, is_single = self._checked(features)
        return Verdict(*(_released(values, is_single=is_single) for values in self._verdict(rows)))

    def explain(self, inputs: object) -> Explanation:
        """Return why inputs score as they do: the p-value of each fused score by itself, and its share of the score.

        The p-values are not adjusted for their number: they say which scores are unusual, and are no test of their own.
        The pruned head of the paper is always among them. Of the paper's method it is the only one.

        Args:
            inputs: As for `score`.

        Returns:
            Names of the members, p-values and shares, shape ``(batch, members)``, or ``(members,)`` of one input.

        Raises:
            NotCalibratedError: If the detector is not calibrated.
            NotFittedError: If nothing was fitted, or there is no model.

        """
        self._calibration()
        return Explanation(self.explained, *self._linked().answers(inputs, self._explained))

    def explain_features(self, features: Array) -> Explanation:
        """Return why features score as they do, as `explain` does of inputs.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> training, head = torch.rand(400, 8), torch.randn(3, 8)
            >>> detector = OPNP().fit_features(training[:300], weight=head, bias=None)
            >>> why = detector.calibrate_features(training[300:]).explain_features(100 * torch.ones(8))
            >>> why.members[int(why.share.argmax())], round(float(why.p_value.min()), 4)
            ('norm', 0.0099)

        """
        self._calibration()
        rows, is_single = self._checked(features)
        found = (_released(values, is_single=is_single) for values in self._explained(rows))
        return Explanation(self.explained, *found)

    def classify_features(self, features: Array) -> Tensor:
        """Return the class that the original head predicts, shape ``(batch,)`` or ``()``, int64."""
        rows, is_single = self._checked(features)
        return _released(self._fitted().classes(rows), is_single=is_single)

    def sweep_features(self, features: Array, ratios: Sequence[Ratios]) -> Tensor:
        """Return the scores of features under many ratios, the other settings as they are, faster than one by one.

        Args:
            features: Shape ``(batch, features)``.
            ratios: The ratios to try.

        Returns:
            Scores, shape ``(ratios, batch)``: row by row those that `with_ratios` would give, up to rounding.

        Raises:
            NotFittedError: If nothing was fitted.
            RatioError: If any of the ratios leaves nothing of the head: there are no scores then, of the other ratios
                neither.
            OptionError: If `ratios` is empty, or no list of them.

        """
        state = self._fitted()
        rows, _ = self._checked(features)
        if not isinstance(ratios, Sequence) or not ratios or not all(isinstance(each, Ratios) for each in ratios):
            raise OptionError(f"`ratios` must be a list of one or more Ratios(...), got {ratios!r}.")
        present = replace(state.settings, members=None)
        found = dict(swept(state, [replace(present, ratios=each) for each in ratios], rows, own_score))
        dtype = product_dtype(rows, precision=present.precision)
        if present.score != "max_logit" and present.temperature > LARGEST_FLOAT32_TEMPERATURE:
            dtype = torch.float64
        return torch.stack([found[place][0] for place in range(len(ratios))]).to(dtype)

    # --------------------------------------------------------------------------------------------------- what is held

    @property
    def settings(self) -> Settings:
        """Every option: as fitted, or as given before."""
        return self._given if self._state is None else self._state.settings

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the scores that are fused; of the paper's method the pruned head alone, ``("opnp",)``."""
        return self._fitted().fused

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the scores that `explain` speaks of: the fused ones, and the pruned head in any case."""
        return self._fitted().explained

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why a score that was asked for is not fused, by name."""
        return self._fitted().left_out

    @property
    def tuning(self) -> Tuning | None:
        """How ratios were chosen on OOD validation data; None where they were not."""
        return self._fitted().tuning

    @property
    def origin(self) -> ModelOrigin | None:
        """The model of the fit by name, and how its inputs are made; None where nobody told, as in a fit by hand."""
        return self._fitted().origin

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where the detector remembers a model that has some; else None."""
        return None if self.origin is None else self.origin.class_names

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, where the fit was by a table; None where they have none.

        ``open_features(path, feature_names=detector.feature_names)`` reads another table in this order.
        """
        return self._fitted().feature_names

    @property
    def samples(self) -> int:
        """Number of training samples that the detector was fitted on."""
        return self._fitted().samples

    @property
    def sensitivity(self) -> Sensitivity:
        """Sensitivities of the head's weights and inputs, float64."""
        return self._fitted().sensitivity

    @property
    def masks(self) -> Masks:
        """What stays of the head: True = keep. Of a fusion, what its pruned head keeps."""
        return self._fitted().pruned.masks

    @property
    def pruned_head(self) -> nn.Linear:
        """The pruned head as a new, plain `nn.Linear` with the dtype of the original and no gradient."""
        pruned = self._fitted().pruned
        return plain_head(pruned.weight, pruned.bias)

    @property
    def original_head(self) -> nn.Linear:
        """The head that the detector was fitted on, as a new, plain `nn.Linear` with no gradient."""
        state = self._fitted()
        return plain_head(state.weight, state.bias)

    def compact_head(self) -> CompactHead:
        """Return the pruned head without the columns of which nothing is left: full features in, the same logits out.

        It holds the kept columns as `head`, a plain `nn.Linear`, and their positions as `index`. It saves memory and
        time where neurons were pruned; where only single weights were, `pruned_head` does as well.

        Raises:
            NotFittedError: If nothing was fitted.

        """
        return CompactHead.from_head(self.pruned_head, self.masks)

    @property
    def head_digest(self) -> str:
        """SHA-256 of the head that the detector was fitted on: over dtype, shape and values of weight and bias."""
        return self._fitted().head_digest

    @property
    def threshold(self) -> float:
        """Score above which an input is flagged.

        Raises:
            CalibrationError: If the detector is calibrated by class: `calibration_groups` have a threshold each.

        """
        return self._calibration().threshold

    @property
    def calibrated_by(self) -> CalibratedBy | None:
        """What calibration samples are grouped by: ``"predicted"``, or None where all are one group."""
        return "predicted" if self._calibration().groups else None

    @property
    def calibration_groups(self) -> tuple[CalibrationGroup, ...]:
        """The groups of classes that are judged by the same samples: name, classes, number of samples, threshold.

        One called ``"all"`` unless the detector is calibrated by class.
        """
        calibration = self._calibration()
        return calibration.groups or (CalibrationGroup("all", range(len(self._fitted().weight)), calibration),)

    def calibration_group_of(self, predicted_class: int) -> CalibrationGroup:
        """Return the group that judges inputs predicted as this class."""
        places = self._calibration().group_of_class
        return self.calibration_groups[0 if places is None else int(places[predicted_class])]

    @property
    def keep(self) -> float:
        """Share of ID inputs that is not flagged, in expectation at least."""
        return self._calibration().keep

    @property
    def calibration_scores(self) -> Tensor:
        """Scores of the calibration samples, ascending, shape ``(n,)``, float64."""
        return self._calibration().scores

    @property
    def id_accuracy(self) -> dict[str, float]:
        """Share of labelled samples that the original head answers right, for ``training`` and ``validation`` samples.

        Only where labels were known; those of the last calibration stand for the validation samples.
        """
        return dict(self._fitted().id_accuracy)

    @property
    def is_fitted(self) -> bool:
        """Whether the training data were seen."""
        return self._state is not None

    @property
    def is_calibrated(self) -> bool:
        """Whether verdicts can be given."""
        return self._state is not None and self._state.calibration is not None

    # ------------------------------------------------------------------------------------------------ files and graphs

    def remember(self, origin: ModelOrigin) -> Self:
        """Keep in the detector, and in its file, which model it belongs to and how inputs are made; return self.

        The command line tells it at each fit by a model, and takes what is missing in other commands from it.

        Raises:
            NotFittedError: If nothing was fitted.

        """
        self._state = self._fitted().restated(origin=origin)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector to one safetensors file. No code, no model, no training data.

        Raises:
            NotFittedError: If nothing was fitted.
            OSError: If the file cannot be written.

        """
        write_detector(path, self._fitted())

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        """Return the detector that `save` wrote, tied to `model` if one is given.

        The model is known by its head alone: that its other layers are those of the fit is the caller's affair.

        Args:
            path: File to read. One that version 0.1 wrote is read if its settings were given, and refused if they were
                chosen automatically.
            model: The model it was fitted on, to score inputs; without it, features can be scored.

        Returns:
            The detector, giving the same scores as the one saved.

        Raises:
            MissingFileError: If there is no such file.
            ArtifactError: If it is no detector, or is damaged.
            HeadMismatchError: If no layer of `model` is the head that the detector was fitted on.

        """
        loaded = cls._holding(read_detector(path), None)
        return loaded if model is None else loaded.attach(model)

    def attach(self, model: nn.Module, *, device: torch.device | str | None = None, auto_batch: bool = False) -> Self:
        """Tie the detector to the model that it was fitted on, so that it takes inputs; return self.

        The model is known by its head alone: that its other layers are those of the fit is the caller's affair. A head
        whose values were rounded to half precision is taken with a warning.

        Args:
            model: The model; it stays as it is.
            device: Where to run it; None for where it is.
            auto_batch: Whether a batch that needs more memory than there is is run in halves.

        Raises:
            NotFittedError: If nothing was fitted.
            HeadMismatchError: If no layer of the model is the head that the detector was fitted on.

        Warns:
            PrecisionWarning: If the head was stored in another type meanwhile.

        Example:
            >>> from opnp import OPNP
            >>> model, inputs = nn.Linear(4, 3), torch.rand(100, 4)
            >>> detector = OPNP().fit_features(inputs, weight=model.weight, bias=model.bias).attach(model)
            >>> torch.equal(detector.score(inputs), detector.score_features(inputs))
            True

        """
        state = self._fitted()
        self._link = linked_by_digest(
            model,
            weight=state.weight,
            bias=state.bias,
            name=state.head_name,
            axes=state.axes,
            device=device,
            halving=BatchHalving(is_on=auto_batch),
        )
        return self

    def features(self, inputs: object) -> Tensor:
        """Return what the head of the model takes in on one batch, shape ``(batch, features)``.

        Raises:
            NotFittedError: If there is no model.
            InputTypeError: If `inputs` is a loader, or of a kind that cannot be read.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        return self._linked().features_of(inputs)[0]

    @contextmanager
    def feature_batches(self, loader: Iterable[object]) -> Iterator[Iterator[Tensor]]:
        """Open the model for one pass over `loader`; yields an iterator of features, one matrix a batch.

        On leaving, the model is as it was.

        Raises:
            NotFittedError: If there is no model.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        with self._linked().feature_batches(loader) as batches:
            yield (features for features, _ in batches)

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
        state = self._fitted()
        self._calibration()
        tied = self if model is None else self._holding(state, None).attach(model)
        link = tied._linked()  # noqa: SLF001  # of its own class
        link.require_unchanged()
        return DetectorModule(link.model, link.head, state)

    def model_card(self, *, inputs: Mapping[str, object] | None = None) -> str:
        """Return a model card in Markdown: what the detector is, how it was made, and what it promises.

        Args:
            inputs: What is known of how inputs are prepared, as JSON values, to be written down with the rest.

        Raises:
            NotFittedError: If nothing was fitted.

        """
        return card_text(self._fitted(), inputs=inputs)

    def __repr__(self) -> str:
        """Return the options, and how far the detector has come."""
        settings = self.settings
        if settings.members is not None:
            options = f"members={list(settings.members)!r}, precision={settings.precision!r}"
        else:
            values = {name: getattr(settings, name) for name in Settings.__slots__ if name != "members"}
            if self._is_tuned and self._state is None:
                values["ratios"] = "tuned"
            options = ", ".join(f"{name}={value!r}" for name, value in values.items())
        if self._state is None:
            return f"OPNP({options})  # not fitted"
        calibration = self._state.calibration
        calibrated = "not calibrated"
        if calibration is not None:
            by = " by predicted class" if calibration.groups else ""
            calibrated = f"calibrated on {len(calibration.scores)} at keep={calibration.keep:g}{by}"
        return f"OPNP({options})  # fitted on {self._state.samples} samples, {calibrated}"

    # ------------------------------------------------------------------------------------------------------- private

    @classmethod
    def _holding(cls, state: FittedState, link: ModelLink | None) -> Self:
        detector = cls.from_settings(state.settings)
        detector._state, detector._link = state, link  # noqa: SLF001  # of its own class
        return detector

    def _require_held_out(self, has_known: bool, has_ood: bool, ranks: Ranks) -> None:  # noqa: FBT001  # two facts
        """Refuse OOD data where nothing is tuned, and tuning without them; ranks must be about to do the same."""
        require_equal(str(self._given.to_json()), ranks, what="the settings")
        with together(ranks):
            if ranks.is_first and self._is_tuned and not (has_known and has_ood):
                raise OptionError(
                    '`ratios="tuned"` needs `validation` and `validation_ood`: held-out ID and OOD samples to choose '
                    "by."
                )
            if has_ood and not self._is_tuned:
                raise OptionError(
                    '`validation_ood` is for `ratios="tuned"` alone: neither the fusion nor given ratios choose by it.'
                )

    def _ended(
        self,
        total: FitSum,
        known: AbstractContextManager[Iterable[_Labelled]] | None,
        ood: AbstractContextManager[Iterable[_Labelled]] | None,
        *,
        keep: float,
        by: CalibratedBy | None,
        ranks: Ranks,
        origin: tuple[str | None, InputAxes | None] = (None, None),
    ) -> FittedState:
        """Return what the sums of all ranks give, tuned and calibrated on held-out features; rank 0 decides for all."""
        total = added_up(total, ranks)
        content = b""
        with together(ranks):
            if ranks.is_first:
                state = total.fitted().restated(head_name=origin[0], axes=origin[1])
                state = _with_accuracy(state, total.answers, "training", stacklevel=4)
                if known is not None:
                    state = self._calibrated(known, keep=keep, by=by, state=state, ood=ood, stacklevel=5)
                if ranks.is_alone:
                    return state
                content = state_bytes(state)
        return state_from_bytes(sent_by_first(content, ranks), device=total.weight.device)

    def _calibrated(
        self,
        known: AbstractContextManager[Iterable[_Labelled]],
        *,
        keep: float,
        by: CalibratedBy | None,
        state: FittedState | None = None,
        ood: AbstractContextManager[Iterable[_Labelled]] | None = None,
        stacklevel: int = 4,
    ) -> FittedState:
        """Return a state, the present one if none is given, tuned where there are OOD samples, and calibrated."""
        state = self._fitted() if state is None else state
        answers = AnswerSum.zeros(len(state.weight), device=state.weight.device)
        with known as batches:
            rows = counted(batches, answers, state.weight, state.bias)
            if ood is None:
                state = state.calibrated(rows, keep=keep, by=by)
            else:
                inside = torch.cat([features.clone() for features in rows])  # a loader may use its buffer again
        if ood is not None:
            with ood as others:
                outside = torch.cat([features.clone() for features, _ in others])
            state, rest = tuned(state, inside, outside, searched=self._searched)
            state = state.calibrated([rest], keep=keep, by=by)
        return _with_accuracy(state, answers, "validation", stacklevel=stacklevel)

    def _fitted(self) -> FittedState:
        if self._state is None:
            raise NotFittedError(
                "This detector has seen no data: call `fit(model, loader)` or `fit_features(...)` first."
            )
        return self._state

    def _linked(self) -> ModelLink:
        self._fitted()
        if self._link is None:
            raise NotFittedError(
                "This detector has no model: it was fitted from features, or loaded without one. Use the `*_features` "
                "methods, or `OPNP.load(path, model=...)`.",
            )
        return self._link

    def _calibration(self) -> Calibration:
        calibration = self._fitted().calibration
        if calibration is None:
            raise NotCalibratedError(
                "This detector is not calibrated, so it can score but give no p-value and no verdict: call "
                "`calibrate(loader)` or `calibrate_features(features)` with held-out ID inputs.",
            )
        return calibration

    def _checked(self, features: Array) -> tuple[Tensor, bool]:
        require_same_names(features, self._fitted().feature_names, name="features")
        features = as_tensor(features)
        is_single = isinstance(features, Tensor) and features.ndim == 1
        rows = features[None] if is_single else features
        checked_matrix(rows, name="features", axes="(batch, features)")
        feature_blocks(rows, self._fitted().weight)
        require_finite(rows, name="features")
        return with_float64(rows.detach()), is_single

    def _verdict(self, features: Tensor) -> tuple[Tensor, ...]:
        state, calibration = self._fitted(), self._calibration()
        scores, classes = state.scores(features), state.classes(features)
        return classes, scores, calibration.p_value(scores, classes), calibration.is_ood(scores, classes)

    def _judged(self, features: Tensor, answer: Callable[[Calibration, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Return p-values or verdicts of checked features; what classes they are is asked only where it matters."""
        state, calibration = self._fitted(), self._calibration()
        return answer(calibration, state.scores(features), state.judged_classes(features, calibration))

    def _explained(self, features: Tensor) -> tuple[Tensor, ...]:
        found = self._fitted().explanation(features, self._calibration())
        return found.p_value, found.share


def _require_grouping(by: object) -> None:
    if by not in (None, "predicted"):
        raise OptionError(f'`by` must be None or "predicted", got {by!r}.')


def _with_accuracy(state: FittedState, answers: AnswerSum, name: str, *, stacklevel: int) -> FittedState:
    """Return a state that knows the accuracy on samples of this name; warn if the answers contradict the labels."""
    message = answers.contradiction(classes=len(state.weight), what=f"labelled {name} samples")
    if message is not None:
        if len({*state.weight.shape}) == 1:
            message += f" {MAY_BE_TRANSPOSED}"
        warnings.warn(message, LabelWarning, stacklevel=stacklevel)
    known = {other: share for other, share in state.id_accuracy.items() if other != name}
    return state.restated(id_accuracy=known if answers.accuracy is None else {**known, name: answers.accuracy})


def _own_head(weight: Array, bias: Array | None) -> tuple[Tensor, Tensor | None]:
    """Return copies of the weight and bias of a classifier's head, checked."""
    weight, bias = checked_head(*two_class_head(as_tensor(weight), None if bias is None else as_tensor(bias)))
    return with_float64(weight.detach().clone()), None if bias is None else with_float64(bias.detach().clone())


def _released(values: Tensor, *, is_single: bool) -> Tensor:
    """Return the values of a batch, or the single value of one input."""
    return values[0] if is_single else values

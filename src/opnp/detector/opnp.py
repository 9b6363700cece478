"""The detector: a thin shell round pure functions that holds what one pass over the data left."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from opnp.core.masks import Scope
from opnp.core.scores import ScoreName
from opnp.core.sensitivity import NeuronReading, Precision
from opnp.core.shaping import Shaping
from opnp.data import FeatureSource
from opnp.detector.answers import Answers
from opnp.detector.blocks import BLOCK_ROWS, feature_blocks
from opnp.detector.checkpoint import Checkpoint
from opnp.detector.fitting import checked_head
from opnp.detector.learning import Learning
from opnp.detector.link import ModelLink, linked_by_digest
from opnp.detector.progress import Progress, shown
from opnp.detector.ratios import Ratios
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Auto, Settings
from opnp.detector.state import State
from opnp.detector.storage import Stored, read_detector, write_detector
from opnp.detector.tuning import Tuning
from opnp.distributed import Ranks, together
from opnp.errors import OptionError
from opnp.model import BatchHalving, LogitsSelector, head_stream

__all__ = ["OPNP"]

_KEEP = 0.95


class OPNP(Answers):
    """Out-of-distribution detector by optimal parameter and neuron pruning of a classifier's last layer.

    One pass over training data takes the sensitivity of the energy to each weight and neuron; the least and the most
    sensitive are removed; inputs are scored by the energy of what is left. Scores: larger = more OOD. The model is
    never changed, and its predicted class stays that of the original head.

    Args:
        ratios: Shares of weights and neurons to remove, or ``"auto"``: chosen on held-out ID samples by class holdout,
            together with `neuron` and `scope`, whatever those say.
        neuron: Reading of the neuron sensitivity: ``"gradient"``, the mean of |dE/dh|, or ``"aggregate"``, the column
            mean of the weight sensitivity.
        scope: Rank all weights together (``"layer"``, the paper) or each class's row by itself (``"class"``).
        temperature: Temperature T of the energy, above 0.
        score: What is read off the pruned head's logits: ``"energy"``, ``"msp"``, ``"max_logit"``, ``"entropy"`` or
            ``"gen"``.
        shaping: What is done to the features before the pruned head: None, ``ReAct(...)``, ``ASHS(...)``,
            ``SCALE(...)``, or ``"auto"``: chosen together with automatic ratios, none where the ratios are fixed.
        precision: Precision of the products. Sums are float64 in either case; ``"float64"`` makes masks equal however
            the data are cut into batches.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import torch
        >>> from opnp import OPNP, Ratios
        >>> _ = torch.manual_seed(0)
        >>> weight, bias = torch.randn(3, 8), torch.zeros(3)
        >>> training, held_out = torch.rand(200, 8), torch.rand(100, 8)
        >>> detector = OPNP(ratios=Ratios(w_min=0.25)).fit_features(training, weight=weight, bias=bias)
        >>> _ = detector.calibrate_features(held_out, keep=0.95)
        >>> int((detector.pruned_head.weight == 0).sum())
        6
        >>> detector.predict_features(torch.stack([held_out[0], -10 * torch.ones(8)])).tolist()
        [False, True]

    References:
        Chen et al., "Optimal Parameter and Neuron Pruning for Out-of-Distribution Detection", NeurIPS 2023.

    """

    def __init__(
        self,
        *,
        ratios: Ratios | Auto = "auto",
        neuron: NeuronReading = "gradient",
        scope: Scope = "layer",
        temperature: float = 1.0,
        score: ScoreName = "energy",
        shaping: Shaping | Auto | None = "auto",
        precision: Precision = "float32",
    ) -> None:
        """Store the options."""
        self._given = Settings(
            ratios=ratios,
            neuron=neuron,
            scope=scope,
            temperature=temperature,
            score=score,
            shaping=shaping,
            precision=precision,
        )
        self._state: State | None = None

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
        device: torch.device | str | None = None,
        auto_batch: bool = False,
        distributed: bool = False,
        progress: Progress = None,
    ) -> Self:
        """Take the sensitivities in one pass of the model over training data, and return self.

        Args:
            model: Any classifier that ends in an `nn.Linear` or equal 1x1 convolution. It stays as it is, to the bit.
            loader: Training batches: tensors, (inputs, labels), or mappings; no labels are needed.
            head: The last layer or its dotted name; None to find it by running one batch.
            logits: Where the logits are in the model's output: index of a tuple, key or attribute, or a function of it.
            validation: Batches of held-out ID inputs, with labels if there are any: automatic ratios are chosen on
                them, with their features held in memory, and the detector is calibrated on them.
            validation_ood: Batches of OOD inputs to choose automatic ratios by, in the place of class holdout; none
                are needed, and fixed ratios do not use them.
            keep: Share of ID inputs not to flag, in (0, 1), with `validation`; as for `calibrate`.
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
            OptionError: If `logits` leads nowhere.
            DistributedError: If another rank fails or is lost.
            EmptyDataError: If there is no batch.
            NonFiniteError: If features or logits are not finite.
            InputTypeError: If batches cannot be read, or the model refuses their dtype.
            InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.
            RatioError: If the ratios leave nothing of this head, or cut among sensitivities too small for float64.
            CalibrationError: If `validation` holds too few samples for `keep`: fewer than 19 at 0.95.

        """
        ranks = Ranks.joined() if distributed else Ranks()
        learning, state = Learning(self._given, is_held_out=validation is not None, ranks=ranks), None
        halving, batches = BatchHalving(is_on=auto_batch), shown(loader, progress)
        opened = head_stream(model, batches, head=head, logits=logits, device=device, halving=halving)
        with together(ranks), opened as stream:
            weight, bias = learning.take(stream.batches, *checked_head(stream.head.weight, stream.head.bias))
            link = ModelLink(model, stream.head, stream.axes, device, weight=weight, bias=bias, halving=halving)
        learning.join()
        with together(ranks):
            if validation is not None and ranks.is_first:
                with link.feature_batches(shown(validation, progress)) as batches:
                    learning.hold_out(batches)
            if validation_ood is not None and ranks.is_first:
                with link.feature_batches(validation_ood) as batches:
                    learning.hold_out_ood(features for features, _ in batches)
            if ranks.is_first:
                state = learning.state(link, keep=keep)
        self._state = learning.agreed(state, link)
        return self

    def fit_features(
        self,
        features: Tensor | FeatureSource,
        *,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor | None = None,
        validation: Tensor | tuple[Tensor, Tensor | None] | FeatureSource | None = None,
        validation_ood: Tensor | FeatureSource | None = None,
        keep: float = _KEEP,
        batch_size: int = BLOCK_ROWS,
        checkpoint: Checkpoint | None = None,
        distributed: bool = False,
        progress: Progress = None,
    ) -> Self:
        """Take the sensitivities from cached features of training data, and return self.

        Args:
            features: Inputs of the head, shape ``(batch, features)``, any floating dtype; or a source of them, such as
                `opnp.data.open_features` gives, which is read block by block and never held as a whole.
            weight: The head's weight, shape ``(classes, features)``.
            bias: The head's bias, shape ``(classes,)``, or None.
            labels: Class indices, shape ``(batch,)``; used where ratios are automatic, otherwise not needed. A source
                has its own.
            validation: Features of held-out ID inputs, shape ``(batch, features)``, a pair of them and their labels, or
                a source: automatic ratios are chosen on them, and the detector is calibrated on them.
            validation_ood: Features of OOD inputs to choose automatic ratios by, in the place of class holdout; none
                are needed, and fixed ratios do not use them.
            keep: Share of ID inputs not to flag, in (0, 1), with `validation`; as for `calibrate`.
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
            ShapeError: If the shapes do not fit together, or there are fewer than two classes.
            EmptyDataError: If there are no rows.
            NonFiniteError: If features or head are not finite.
            RatioError: If the ratios leave nothing of this head, or cut among sensitivities too small for float64.
            CalibrationError: If `validation` holds too few samples for `keep`: fewer than 19 at 0.95.

        """
        ranks = Ranks.joined() if distributed else Ranks()
        learning, state = Learning(self._given, is_held_out=validation is not None, ranks=ranks), None
        weight = learning.take_features(
            features,
            weight=weight,
            bias=bias,
            labels=labels,
            size=batch_size,
            checkpoint=checkpoint,
            progress=progress,
        )
        learning.join()
        with together(ranks):
            if validation is not None and ranks.is_first:
                held_out, targets = validation if isinstance(validation, tuple) else (validation, None)
                learning.hold_out(feature_blocks(held_out, weight, labels=targets, name="validation"))
            if validation_ood is not None and ranks.is_first:
                learning.hold_out_ood(feature_blocks(validation_ood, weight, name="validation_ood").features())
            if ranks.is_first:
                state = learning.state(None, keep=keep)
        self._state = learning.agreed(state, None)
        return self

    def calibrate(self, loader: Iterable[object], *, keep: float = _KEEP, progress: Progress = None) -> Self:
        """Score held-out ID inputs, so that verdicts keep the share `keep` of ID; return self.

        The inputs must be exchangeable with the ID inputs to come, and none may have been trained on. Calibrating
        again replaces the calibration; nothing is refitted.

        Args:
            loader: Batches of held-out ID inputs.
            keep: Share of ID inputs not to flag, in (0, 1): at least this share in expectation.
            progress: Wrapper of iterables that shows progress; True for a bar.

        Returns:
            This detector.

        Raises:
            NotFittedError: If nothing was fitted, or there is no model.
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few samples for this `keep`: fewer than 19 at 0.95.
            HeadMismatchError: If the model's head has changed since the fit.

        """
        state = self._fitted()
        with self._linked().feature_batches(shown(loader, progress)) as batches:
            state = state.calibrated((state.scorer.scores(features) for features, _ in batches), keep=keep)
        self._state = state  # once the model was given back
        return self

    def calibrate_features(self, features: Tensor | FeatureSource, *, keep: float = _KEEP) -> Self:
        """Calibrate as `calibrate` does, from features of held-out ID inputs, or a source of them; return self.

        Raises:
            NotFittedError: If nothing was fitted.
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few samples for this `keep`.
            ShapeError: If the width is not the head's.

        """
        state = self._fitted()
        blocks = feature_blocks(features, state.fitted.weight)
        self._state = state.calibrated(map(state.scorer.scores, blocks.features()), keep=keep)
        return self

    def with_ratios(self, ratios: Ratios, *, neuron: NeuronReading | None = None, scope: Scope | None = None) -> Self:
        """Return a new detector with other ratios from the same sensitivities; nothing is refitted.

        Every other setting stays, a shaping that was chosen automatically too. Calibration belongs to the scores of
        one setting: the new detector has none. Call `calibrate` on it.

        Args:
            ratios: The new ratios.
            neuron: Another reading of the neuron sensitivity; None for the present one.
            scope: Another scope of the ranking; None for the present one.

        Returns:
            A fitted, uncalibrated detector that shares the sensitivities and the model with this one.

        Raises:
            NotFittedError: If nothing was fitted.
            RatioError: If the ratios leave nothing of this head, or cut among sensitivities too small for float64.

        """
        state = self._fitted()
        if not isinstance(ratios, Ratios):
            raise OptionError(f"`ratios` must be a Ratios(...), got {ratios!r}.")
        present = state.scorer.settings
        settings = replace(present, ratios=ratios, neuron=neuron or present.neuron, scope=scope or present.scope)
        return self._holding(settings, state.with_settings(settings))

    @property
    def settings(self) -> Settings:
        """Every option: as chosen once fitted, as given before."""
        return self._given if self._state is None else self._state.scorer.settings

    @property
    def tuning(self) -> Tuning | None:
        """How automatic settings were chosen: what was tried, what it was worth; None where nothing was chosen."""
        return self._fitted().tuning

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector to one safetensors file: settings, sensitivities, head, calibration. No code, no model.

        Raises:
            NotFittedError: If nothing was fitted.
            OSError: If the file cannot be written.

        """
        state = self._fitted()
        stored = Stored(
            given=self._given,
            settings=state.scorer.settings,
            fitted=state.fitted,
            calibration=state.calibration,
            head_name=state.head_name,
            axes=state.axes,
            tuning=state.tuning,
        )
        write_detector(path, stored)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        """Return the detector that `save` wrote, tied to `model` if one is given.

        The model is known by its head alone: that its other layers are those of the fit is the caller's affair.

        Args:
            path: File to read.
            model: The model it was fitted on, to score inputs; without it, features can be scored.

        Returns:
            The detector, giving the same scores as the one saved.

        Raises:
            MissingFileError: If there is no such file.
            ArtifactError: If it is no detector, or is damaged.
            HeadMismatchError: If no layer of `model` is the head that the detector was fitted on.

        """
        stored = read_detector(path)
        link = None
        if model is not None:
            weight, bias = stored.fitted.weight, stored.fitted.bias
            link = linked_by_digest(model, weight=weight, bias=bias, name=stored.head_name, axes=stored.axes)
        state = State(
            fitted=stored.fitted,
            scorer=Scorer.from_fitted(stored.fitted, stored.settings, is_stored=True),
            link=link,
            calibration=stored.calibration,
            tuning=stored.tuning,
            head_name=stored.head_name,
            axes=stored.axes,
        )
        return cls._holding(stored.given, state)

    def __repr__(self) -> str:
        """Return the options, and how far the detector has come."""
        options = ", ".join(f"{name}={getattr(self.settings, name)!r}" for name in Settings.__slots__)
        if self._state is None:
            return f"OPNP({options})  # not fitted"
        samples = self._state.fitted.sensitivity.count
        calibration = self._state.calibration
        calibrated = "not calibrated"
        if calibration is not None:
            calibrated = f"calibrated on {len(calibration.scores)} at keep={calibration.keep:g}"
        return f"OPNP({options})  # fitted on {samples} samples, {calibrated}"

    @classmethod
    def _holding(cls, given: Settings, state: State) -> Self:
        detector = cls(**{name: getattr(given, name) for name in Settings.__slots__})
        detector._state = state
        return detector

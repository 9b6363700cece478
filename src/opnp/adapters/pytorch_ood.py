"""OPNP as a detector of pytorch-ood, for its `GridSearch`, its `Benchmark`, and code that is written for either.

This module needs pytorch-ood when it is imported, so `opnp.adapters` does not import it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from opnp.adapters.toolkits import (
    OPTION_DEFAULTS,
    EncodedClassifier,
    blank_pass,
    bytes_of,
    checked_names,
    detector_from,
    encoded,
    reset,
    settings_of,
)
from opnp.core.checks import checked_head, checked_matrix, two_class_head
from opnp.core.labels import class_indices
from opnp.core.shaping import Shaping
from opnp.detector import OPNP, Settings
from opnp.errors import EmptyDataError, InputTypeError, MissingExtraError, NotFittedError, OptionError, ShapeError
from opnp.model import BatchReader
from opnp.values.settings import NeuronReading, Precision, Scope, ScoreName

try:
    from pytorch_ood.api import (
        DetectorInfo,
        FeaturesDetector,
        ModelNotSetException,
        Paper,
        RequiresFittingException,
        Task,
    )
except ImportError as error:
    if str(error.name).partition(".")[0] != "pytorch_ood":
        raise
    raise MissingExtraError(
        "`opnp.adapters.pytorch_ood` needs pytorch-ood 0.4 or newer, which is not installed: "
        "`pip install 'opnp[bench]'`.",
    ) from error

__all__ = ["EncoderMissingError", "FitMissingError", "OPNPDetector"]

_ROWS = 4096
"""Rows that a digest takes at a time."""


class FitMissingError(NotFittedError, RequiresFittingException):  # type: ignore[misc]  # the package ships no types
    """The detector has not been fitted, or not for the hyper-parameters that it has now."""


class EncoderMissingError(OptionError, ModelNotSetException):  # type: ignore[misc]  # as above
    """Inputs were given to a detector that has no encoder."""


class OPNPDetector(FeaturesDetector):  # type: ignore[misc]  # the package ships no types
    """OPNP with the interface of pytorch-ood's detectors on features: larger scores = more OOD.

    Without options it is the fusion; with ratios it is the paper's method, which `GridSearch` searches. A change of
    ratios, `neuron` or `scope` takes effect at once, by attribute or `set_hyperparameters`, and is never
    refitted: the sensitivities of one pass serve all of them. A change of anything else needs `fit` again. Features
    that were fitted to before, as by each step of a `GridSearch`, are not gone through again.

    Args:
        encoder: Function from inputs to features, shape ``(batch, features)``, or None where only features are given.
            A module, or a method of one, is run in eval mode and comes back as it was.
        head: The classifier's last layer; its weights are copied.
        w: In the place of `head`, its weight, shape ``(classes, features)``.
        b: Its bias, shape ``(classes,)``, or None.
        w_min: Share of the weights with the smallest sensitivity to remove, in [0, 1). Where no option of the paper's
            method is given, this one and the following, scores are fused; a ratio that is None beside others is 0.
        w_max: Share of the weights with the largest sensitivity.
        o_min: Share of the neurons with the smallest sensitivity.
        o_max: Share of the neurons with the largest sensitivity.
        members: Names of the scores to fuse, as for `OPNP`.
        neuron: As for `OPNP`, and so are the following.
        scope: As for `OPNP`.
        temperature: As for `OPNP`.
        score: As for `OPNP`.
        shaping: As for `OPNP`.
        precision: As for `OPNP`.

    Raises:
        OptionError: If an option is out of range, or not exactly one of `head` and `w` is given.
        InputTypeError: If `head` is no `nn.Linear`.
        ShapeError: If the head is none of at least two classes.

    Example:
        >>> import torch
        >>> from opnp.adapters.pytorch_ood import OPNPDetector
        >>> detector = OPNPDetector(None, w=torch.eye(2), b=None, w_min=0.0)
        >>> _ = detector.fit_features(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        >>> [round(score, 4) for score in detector.predict_features(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()]
        [-3.1269, -0.6931]

    References:
        Chen et al., "Optimal Parameter and Neuron Pruning for Out-of-Distribution Detection", NeurIPS 2023.

    """

    requires_fit = True

    hyperparameter_space: ClassVar[dict[str, list[object]]] = {
        "w_min": [0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9],
        "w_max": [0.0, 0.005],
        "o_min": [0.0, 0.3],
        "o_max": [0.0, 0.05, 0.3],
    }

    info = DetectorInfo(
        paper=Paper(
            title="Optimal Parameter and Neuron Pruning for Out-of-Distribution Detection",
            venue="NeurIPS",
            year=2023,
            url="https://arxiv.org/abs/2402.10062",
        ),
        tasks={Task.CLASSIFICATION},
        ai_coded=True,
    )

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor] | None,
        head: nn.Linear | None = None,
        *,
        w: Tensor | None = None,
        b: Tensor | None = None,
        w_min: float | None = None,
        w_max: float | None = None,
        o_min: float | None = None,
        o_max: float | None = None,
        members: Sequence[str] | None = None,
        neuron: NeuronReading | None = None,
        scope: Scope | None = None,
        temperature: float | None = None,
        score: ScoreName | None = None,
        shaping: Shaping | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Store the options, and a copy of the head."""
        super().__init__()
        self.encoder = encoder
        self._weight, self._bias = _head(head, w, b)
        self.w_min, self.w_max, self.o_min, self.o_max = w_min, w_max, o_min, o_max
        self.members, self.neuron, self.scope = members, neuron, scope
        self.temperature, self.score, self.shaping, self.precision = temperature, score, shaping, precision
        self._seen = b""
        """Digest of the features and labels of the fit."""
        self._passes: dict[Settings, OPNP] = {}
        """Detectors by what their pass over the training data depends on."""
        self._ready: dict[Settings, OPNP] = {}
        """The detector in force, by its settings."""
        self._settings()

    @property
    def opnp(self) -> OPNP:
        """The detector of this project under the present hyper-parameters: its masks, `pruned_head`, `save` and all.

        Raises:
            FitMissingError: If it has not been fitted for these.
            RatioError: If the ratios leave nothing of this head.

        """
        settings = self._settings()
        if settings not in self._ready:
            found = self._passes.get(blank_pass(settings))
            if found is None:
                what = "for these hyper-parameters" if self._passes else "to any data"
                raise FitMissingError(f"This detector has not been fitted {what}: call `fit` or `fit_features`.")
            self._ready = {settings: reset(found, settings)}
        return self._ready[settings]

    def set_hyperparameters(self, **hyperparameters: object) -> Self:
        """Set hyper-parameters by name, all or none, and return self.

        Raises:
            OptionError: If a name is unknown, which would change nothing, or a value is out of range.
            RatioError: If a ratio is out of range.

        """
        checked_names(hyperparameters, allowed=OPTION_DEFAULTS)
        settings_of({**self._options(), **hyperparameters})
        for name, value in hyperparameters.items():
            setattr(self, name, value)
        return self

    def fit(self, data_loader: Iterable[object]) -> Self:
        """Take the sensitivities in one pass of the encoder over training data, holding no features; return self.

        Args:
            data_loader: Batches of inputs, or pairs of inputs and labels; samples with labels below 0 are OOD, and
                left out.

        Raises:
            EncoderMissingError: If there is no encoder.
            EmptyDataError: If there are no ID samples.
            InputTypeError: If a batch is of another kind.
            NonFiniteError: If features are not finite.
            RatioError: If the ratios leave nothing of this head.

        """
        settings = blank_pass(self._settings())
        classifier = EncodedClassifier(self._encoder(), self._weight, self._bias)
        detector = OPNP.from_settings(settings).fit(
            classifier, _known(data_loader, BatchReader.of(classifier, is_inside=False)), head=classifier.head
        )
        return self._holding(b"", {settings: detector})

    def fit_features(self, z: Tensor, y: Tensor | None = None) -> Self:
        """Take the sensitivities from features of training data, and return self.

        Args:
            z: Shape ``(batch, features)``.
            y: Labels, shape ``(batch,)``; samples with labels below 0 are OOD, and left out. None: all are ID.

        Raises:
            EmptyDataError: If there are no ID samples.
            ShapeError: If the shapes do not fit together.
            NonFiniteError: If features are not finite.
            RatioError: If the ratios leave nothing of this head.

        """
        checked_matrix(z, name="z", axes="(batch, features)")
        labels = None if y is None else class_indices(y)
        if labels is not None and labels.shape != z.shape[:1]:
            raise ShapeError(
                f"`y` must have shape {tuple(z.shape[:1])}, as there are rows in `z`, got {tuple(labels.shape)}."
            )
        settings = blank_pass(self._settings())
        seen = _digest(z) + (b"" if labels is None else _digest(labels))
        passes = self._passes if seen == self._seen else {}
        if settings not in passes:
            known = slice(None) if labels is None else (labels >= 0).to(z.device)
            rows = z.detach()[known].to(self._weight.device)
            if not len(rows):
                raise EmptyDataError("`y` names no ID sample: at least one label must be 0 or larger.")
            detector = OPNP.from_settings(settings).fit_features(rows, weight=self._weight, bias=self._bias)
            passes = {**passes, settings: detector}
        return self._holding(seen, passes)

    def predict(self, x: Tensor) -> Tensor:
        """Return the scores of a batch of inputs, shape ``(batch,)``; larger = more OOD.

        Raises:
            EncoderMissingError: If there is no encoder.
            FitMissingError: If the detector has not been fitted for its hyper-parameters.
            NonFiniteError: If features are not finite.

        """
        encoder, detector = self._encoder(), self.opnp
        return detector.score_features(encoded(encoder, x))

    def predict_features(self, z: Tensor) -> Tensor:
        """Return the scores of features of shape ``(batch, features)``, as `predict` does of inputs."""
        return self.opnp.score_features(z)

    def __getstate__(self) -> dict[str, object]:
        """Return what to pickle or copy: detectors as the files they are saved in, and no data."""
        passes = {settings: bytes_of(detector) for settings, detector in self._passes.items()}
        return {**vars(self), "_ready": {}, "_passes": passes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        passes = {settings: detector_from(data) for settings, data in state["_passes"].items()}
        self.__dict__.update({**state, "_passes": passes})

    def _options(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in OPTION_DEFAULTS}

    def _settings(self) -> Settings:
        return settings_of(self._options())

    def _encoder(self) -> Callable[[Tensor], Tensor]:
        if self.encoder is None:
            raise EncoderMissingError(
                "This detector has no `encoder`, so it takes features only: use `fit_features` and `predict_features`."
            )
        return self.encoder

    def _holding(self, seen: bytes, passes: dict[Settings, OPNP]) -> Self:
        """Take over a fit as a whole, or nothing of it if the ratios do not fit the head."""
        settings = self._settings()
        ready = {settings: reset(passes[blank_pass(settings)], settings)}
        self._seen, self._passes, self._ready = seen, passes, ready
        return self


def _head(head: nn.Linear | None, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return copies of weight and bias."""
    if (head is None) == (w is None) or (head is not None and b is not None):
        raise OptionError("Give the classifier's last layer either as `head`, an nn.Linear, or as `w` and `b`.")
    if head is not None:
        if not isinstance(head, nn.Linear):
            raise InputTypeError(
                f"`head` must be an nn.Linear, got {type(head).__name__}. Give a weight and a bias as `w` and `b`."
            )
        w, b = head.weight, head.bias
    weight, bias = checked_head(*two_class_head(w, b))  # type: ignore[arg-type]  # one of the two is given
    return weight.detach().clone(), None if bias is None else bias.detach().clone()


def _digest(tensor: Tensor) -> bytes:
    """Return a digest of a tensor's kind and values in their order, read some rows at a time."""
    found = hashlib.blake2b(f"{tensor.dtype} {tensor.device} {tuple(tensor.shape)}".encode(), digest_size=16)
    for part in tensor.detach().split(_ROWS):
        found.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.digest()


def _known(loader: Iterable[object], reader: BatchReader) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """Yield the batches without samples whose label is below 0, and without those that are left empty.

    Raises:
        EmptyDataError: At the end, if there were batches and none held a known sample.

    """
    is_any = is_known = False
    for batch in loader:
        is_any = True
        inputs, labels, *_ = reader.read(batch)
        if not isinstance(inputs, Tensor):
            raise InputTypeError(
                "Batches must be tensors, or pairs of inputs and labels as in pytorch-ood, got a mapping."
            )
        if labels is None:
            is_known = True
            yield inputs
        elif bool((labels >= 0).any()):
            is_known = True
            yield inputs[labels >= 0], labels[labels >= 0]
    if is_any and not is_known:
        raise EmptyDataError("The labels name no ID sample: at least one must be 0 or larger.")

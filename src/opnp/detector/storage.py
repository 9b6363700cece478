"""A fitted detector as one artifact: which tensors and which metadata, and back."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.core.checks import require_finite
from opnp.core.sensitivity import Sensitivity
from opnp.core.shaping import ReAct
from opnp.detector.fitting import Fitted, checked_head
from opnp.detector.link import head_digest
from opnp.detector.settings import Settings
from opnp.detector.tuning import Tuning
from opnp.detector.verdicts import Calibration
from opnp.errors import ArtifactError, InputTypeError, OptionError, ShapeError
from opnp.files.typed_json import typed_value
from opnp.model import InputAxes

__all__ = ["FORMAT_VERSION", "Stored", "read_detector", "write_detector"]

FORMAT_VERSION = 1

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class _HeadFacts:
    """What the metadata say of the head."""

    name: str | None
    sha256: str


@dataclass(frozen=True, slots=True)
class _TrialFacts:
    """What the metadata say of a trial; the attributes are those of `Trial`."""

    settings: Mapping[str, object]
    holdout: tuple[float, ...]
    thinned: float
    scrambled: float
    failure: float
    loss: float
    value: float
    is_harmless: bool


@dataclass(frozen=True, slots=True)
class _TuningFacts:
    """What the metadata say of how settings were chosen; the attributes are those of `Tuning`."""

    energy: _TrialFacts
    chosen: _TrialFacts
    samples: int
    source: str
    is_labelled: bool
    tried: int


@dataclass(frozen=True, slots=True)
class _Told:
    """The metadata of a file, as `write_detector` writes them."""

    given: Mapping[str, object]
    settings: Mapping[str, object]
    training_samples: int
    react_thresholds: tuple[tuple[float, float], ...]
    tuning: _TuningFacts | None
    keep: float | None
    head: _HeadFacts
    input_axes: int | Mapping[str, int] | None


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """All that a saved detector holds.

    Attributes:
        given: Settings as the user gave them, perhaps automatic.
        settings: Settings with nothing left automatic.
        fitted: Sensitivities and head.
        calibration: Calibration, or None.
        head_name: The head's dotted name in its model; None if fitted from features.
        axes: Number of axes of a batch of inputs; None if fitted from features.
        tuning: How automatic settings were chosen, or None.

    """

    given: Settings
    settings: Settings
    fitted: Fitted
    calibration: Calibration | None
    head_name: str | None
    axes: InputAxes | None
    tuning: Tuning | None

    @property
    def digest(self) -> str:
        """Digest of the head."""
        return head_digest(self.fitted.weight, self.fitted.bias)


def write_detector(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write a detector to one safetensors file."""
    fitted, calibration = stored.fitted, stored.calibration
    tensors: dict[str, Tensor | None] = {
        "head.weight": fitted.weight,
        "head.bias": fitted.bias,
        "sensitivity.weight": fitted.sensitivity.weight,
        "sensitivity.neuron_gradient": fitted.sensitivity.neuron_gradient,
        "sensitivity.neuron_aggregate": fitted.sensitivity.neuron_aggregate,
        "calibration.scores": None if calibration is None else calibration.scores,
    }
    metadata = {
        "given": stored.given.to_json(),
        "settings": stored.settings.to_json(),
        "training_samples": fitted.sensitivity.count,
        "react_thresholds": sorted(fitted.react_thresholds.items()),
        "tuning": None if stored.tuning is None else stored.tuning.to_json(),
        "keep": None if calibration is None else calibration.keep,
        "head": {"name": stored.head_name, "sha256": stored.digest},
        "input_axes": stored.axes,
    }
    write_artifact(
        path,
        kind="detector",
        format_version=FORMAT_VERSION,
        tensors={name: tensor for name, tensor in tensors.items() if tensor is not None},
        metadata=metadata,
    )


def read_detector(path: str | os.PathLike[str]) -> Stored:
    """Return the detector that `write_detector` wrote.

    Raises:
        MissingFileError: If there is no such file.
        ArtifactError: If it is no detector, or is damaged.

    """
    tensors, metadata = read_artifact(path, kind="detector", format_version=FORMAT_VERSION)
    try:
        told = typed_value(_Told, metadata, name="the metadata")
        scores = tensors.get("calibration.scores")
        stored = Stored(
            given=Settings.from_json(told.given),
            settings=Settings.from_json(told.settings),
            fitted=Fitted(
                sensitivity=Sensitivity(
                    weight=tensors["sensitivity.weight"],
                    neuron_gradient=tensors["sensitivity.neuron_gradient"],
                    neuron_aggregate=tensors["sensitivity.neuron_aggregate"],
                    count=told.training_samples,
                ),
                weight=tensors["head.weight"],
                bias=tensors.get("head.bias"),
                react_thresholds=dict(told.react_thresholds),
            ),
            calibration=None if scores is None else _calibration(scores, keep=told.keep),
            head_name=told.head.name,
            axes=dict(told.input_axes) if isinstance(told.input_axes, Mapping) else told.input_axes,
            tuning=None if told.tuning is None else Tuning.from_json(asdict(told.tuning)),
        )
        _require_consistent(stored, sha256=told.head.sha256)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} lacks or garbles something that a detector must hold ({error!r}).") from error
    return stored


def _calibration(scores: Tensor, *, keep: float | None) -> Calibration:
    """Return the calibration by stored scores."""
    if scores.ndim != 1 or scores.dtype != torch.float64 or keep is None:
        raise ShapeError("The calibration it holds is no vector of float64 with a share to keep.")
    require_finite(scores, name="calibration scores")
    return Calibration.from_scores(scores, keep=keep)


def _require_consistent(stored: Stored, *, sha256: str) -> None:
    """Raise if the parts do not belong together, or nothing can be computed with them."""
    if stored.digest != sha256:
        raise ArtifactError("The head it holds is not the one it was made from.")
    sensitivity, weight, bias = stored.fitted.sensitivity, stored.fitted.weight, stored.fitted.bias
    checked_head(weight, bias)
    parts = sensitivity.weight, sensitivity.neuron_gradient, sensitivity.neuron_aggregate
    if tuple(part.shape for part in parts) != (weight.shape, weight.shape[1:], weight.shape[1:]):
        raise ShapeError("The sensitivities it holds are those of another head.")
    if weight.shape[1] == 0 or sensitivity.count < 1:
        raise ShapeError("It holds a head without features, or sensitivities of no sample.")
    if any(part.dtype not in _FLOATS for part in (*parts, weight, weight if bias is None else bias)):
        raise InputTypeError("It holds numbers of a type that cannot be computed with.")
    for part in parts:
        require_finite(part, name="sensitivities")
    shaping = stored.settings.fixed_shaping
    if stored.settings.is_automatic or stored.settings.shaping == "auto":
        raise OptionError("The settings it holds leave something to be chosen.")
    if isinstance(shaping, ReAct) and shaping.quantile not in stored.fitted.react_thresholds:
        raise OptionError("The threshold of ReAct is missing.")
    if stored.tuning is not None and not 0 < len(stored.tuning.energy.holdout) == len(stored.tuning.chosen.holdout):
        raise ShapeError("The trials it holds are not of the same draws.")

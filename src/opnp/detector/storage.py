"""A fitted detector as one artifact: which tensors and which metadata, and back."""

import os
from dataclasses import dataclass

from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.core.checks import require_finite
from opnp.core.sensitivity import Sensitivity
from opnp.detector.fitting import Fitted
from opnp.detector.link import head_digest
from opnp.detector.settings import Settings
from opnp.detector.tuning import Tuning
from opnp.detector.verdicts import Calibration
from opnp.errors import ArtifactError, ShapeError
from opnp.model import InputAxes

__all__ = ["FORMAT_VERSION", "Stored", "read_detector", "write_detector"]

FORMAT_VERSION = 1


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
        scores = tensors.get("calibration.scores")
        head: dict[str, str | None] = metadata["head"]  # type: ignore[assignment]  # JSON, checked by use
        stored = Stored(
            given=Settings.from_json(metadata["given"]),  # type: ignore[arg-type]  # as above
            settings=Settings.from_json(metadata["settings"]),  # type: ignore[arg-type]  # as above
            fitted=Fitted(
                sensitivity=Sensitivity(
                    weight=tensors["sensitivity.weight"],
                    neuron_gradient=tensors["sensitivity.neuron_gradient"],
                    neuron_aggregate=tensors["sensitivity.neuron_aggregate"],
                    count=metadata["training_samples"],  # type: ignore[arg-type]  # as above
                ),
                weight=tensors["head.weight"],
                bias=tensors.get("head.bias"),
                react_thresholds=dict(metadata["react_thresholds"]),  # type: ignore[call-overload]  # as above
            ),
            calibration=None if scores is None else Calibration.from_scores(scores, keep=metadata["keep"]),  # type: ignore[arg-type]  # as above
            head_name=head["name"],
            axes=metadata["input_axes"],  # type: ignore[arg-type]  # as above
            tuning=None if metadata["tuning"] is None else Tuning.from_json(metadata["tuning"]),  # type: ignore[arg-type]  # as above
        )
        _require_consistent(stored, sha256=head["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} lacks or garbles something that a detector must hold ({error!r}).") from error
    return stored


def _require_consistent(stored: Stored, *, sha256: str | None) -> None:
    """Raise if the parts do not belong together."""
    if stored.digest != sha256:
        raise ArtifactError("The head it holds is not the one it was made from.")
    sensitivity, weight = stored.fitted.sensitivity, stored.fitted.weight
    found = sensitivity.weight.shape, sensitivity.neuron_gradient.shape, sensitivity.neuron_aggregate.shape
    if found != (weight.shape, weight.shape[1:], weight.shape[1:]):
        raise ShapeError("The sensitivities it holds are those of another head.")
    if stored.calibration is not None:
        require_finite(stored.calibration.scores, name="calibration scores")

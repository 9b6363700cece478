"""A fitted detector as one artifact: which tensors and which metadata, and back."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from torch import Tensor

from opnp.artifact import read_artifact, write_artifact
from opnp.core.checks import checked_head, require_finite
from opnp.core.members import REACT_QUANTILE, Panel
from opnp.core.sensitivity import Sensitivity
from opnp.core.shaping import ReAct
from opnp.errors import ArtifactError, InputTypeError, NonFiniteError, OptionError, ShapeError
from opnp.fitted import Calibration, FittedState, Settings, Tuning, head_digest
from opnp.values.fit import TuningFigures
from opnp.values.origin import ModelOrigin
from opnp.values.reading import Share, Value
from opnp.values.settings import CalibratedBy

__all__ = ["FORMAT_VERSION", "read_detector", "state_bytes", "state_from_bytes", "write_detector"]

FORMAT_VERSION = 2
_FIRST_VERSION = 1

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DERIVED = ("weight", "bias", "pruned_weight")
"""Tensors of a panel that follow from the head and the masks."""


class _HeadFacts(Value, frozen=True):
    """What the metadata say of the head."""

    name: str | None
    sha256: str


class _FusionFacts(Value, frozen=True):
    """What the metadata say of a fusion."""

    fused: tuple[str, ...]
    left_out: Mapping[str, str]
    kept: int
    numbers: Mapping[str, float]


class _Told(Value, frozen=True):
    """The metadata of a file, as `write_detector` writes them."""

    settings: Mapping[str, object]
    training_samples: int
    react_thresholds: tuple[tuple[float, float], ...]
    fusion: _FusionFacts | None
    tuning: Mapping[str, object] | None
    keep: float | None
    head: _HeadFacts
    input_axes: int | Mapping[str, int] | None
    id_accuracy: Mapping[str, Share] = {}
    origin: ModelOrigin | None = None
    feature_names: tuple[str, ...] | None = None
    calibrated_by: CalibratedBy | None = None


def write_detector(path: str | os.PathLike[str], state: FittedState) -> None:
    """Write a detector to one safetensors file."""
    calibration, panel = state.calibration, state.panel
    tensors: dict[str, Tensor | None] = {
        "head.weight": state.weight,
        "head.bias": state.bias,
        "sensitivity.weight": state.sensitivity.weight,
        "sensitivity.neuron_gradient": state.sensitivity.neuron_gradient,
        "sensitivity.neuron_aggregate": state.sensitivity.neuron_aggregate,
        "calibration.scores": None if calibration is None else calibration.scores,
        "calibration.members": None if calibration is None else calibration.members,
        "calibration.classes": None if calibration is None else calibration.classes,
        "fusion.scales": state.scales,
    }
    if panel is not None:
        tensors |= {f"panel.{name}": tensor for name, tensor in panel.tensors().items() if name not in _DERIVED}
    fusion = {"fused": state.fused, "left_out": dict(state.left_out), "kept": state.kept}
    metadata = {
        "settings": state.settings.to_json(),
        "training_samples": state.sensitivity.count,
        "react_thresholds": sorted(state.react_thresholds.items()),
        "fusion": None if panel is None else fusion | {"numbers": panel.numbers()},
        "tuning": None if state.tuning is None else state.tuning.to_json(),
        "keep": None if calibration is None else calibration.keep,
        **({} if calibration is None or calibration.classes is None else {"calibrated_by": "predicted"}),
        "head": {"name": state.head_name, "sha256": state.head_digest},
        "input_axes": state.axes,
        "id_accuracy": dict(state.id_accuracy),
        "origin": None if state.origin is None else msgspec.to_builtins(state.origin),
        "feature_names": state.feature_names,
    }
    write_artifact(
        path,
        kind="detector",
        format_version=FORMAT_VERSION,
        tensors={name: tensor for name, tensor in tensors.items() if tensor is not None},
        metadata=metadata,
    )


def read_detector(path: str | os.PathLike[str]) -> FittedState:
    """Return the detector that `write_detector` wrote, or version 0.1 where its settings were given.

    Raises:
        MissingFileError: If there is no such file.
        ArtifactError: If it is no detector, or is damaged; or one of version 0.1 that chose its settings.

    """
    tensors, metadata = read_artifact(path, kind="detector", format_version=FORMAT_VERSION, older=(_FIRST_VERSION,))
    if metadata.pop("format_version", None) == _FIRST_VERSION:
        metadata = _of_first_version(metadata, path)
    try:
        told = msgspec.convert(metadata, _Told)
        state = FittedState(
            settings=Settings.from_json(told.settings),
            weight=tensors["head.weight"],
            bias=tensors.get("head.bias"),
            sensitivity=Sensitivity(
                weight=tensors["sensitivity.weight"],
                neuron_gradient=tensors["sensitivity.neuron_gradient"],
                neuron_aggregate=tensors["sensitivity.neuron_aggregate"],
                count=told.training_samples,
            ),
            react_thresholds=dict(told.react_thresholds),
            head_name=told.head.name,
            axes=dict(told.input_axes) if isinstance(told.input_axes, Mapping) else told.input_axes,
            tuning=None if told.tuning is None else _tuning(told.tuning),
            id_accuracy=dict(told.id_accuracy),
            origin=told.origin,
            feature_names=told.feature_names,
        )
        _require_consistent(state, sha256=told.head.sha256)
        if told.fusion is not None:
            state = _with_fusion(state, told.fusion, tensors)
        if (told.fusion is not None) != state.settings.is_fusion:
            raise OptionError("Its settings and its members do not belong together.")
        scores = tensors.get("calibration.scores")
        if scores is not None:
            members, classes = tensors.get("calibration.members"), tensors.get("calibration.classes")
            if (classes is None) != (told.calibrated_by is None):
                raise OptionError("What it is calibrated by and its calibration samples do not belong together.")
            calibration = _calibration(scores, members, classes, keep=told.keep, state=state)
            state = state.restated(calibration=calibration)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} lacks or garbles something that a detector must hold ({error!r}).") from error
    return state


def state_bytes(state: FittedState) -> bytes:
    """Return the file that `write_detector` writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        write_detector(path, state)
        return path.read_bytes()


def state_from_bytes(content: bytes, *, device: torch.device) -> FittedState:
    """Return the detector that `state_bytes` gave, with its head on a device."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        path.write_bytes(content)
        state = read_detector(path)
    found = state.sensitivity
    return replace(
        state,
        weight=state.weight.to(device),
        bias=None if state.bias is None else state.bias.to(device),
        sensitivity=Sensitivity(
            found.weight.to(device), found.neuron_gradient.to(device), found.neuron_aggregate.to(device), found.count
        ),
    )


def _of_first_version(metadata: dict[str, object], path: str | os.PathLike[str]) -> dict[str, object]:
    """Return the metadata of version 0.1 as those of this one; refuse settings that were chosen automatically."""
    given = metadata.pop("given", None)
    if isinstance(given, Mapping) and given.get("ratios") == "auto":
        raise ArtifactError(
            f"{path} is a detector of opnp 0.1 that chose its settings by itself. This version fuses scores in place "
            f"of choosing one, and does not read it: fit again with OPNP(), or score with opnp 0.1."
        )
    settings = metadata.get("settings")
    if isinstance(settings, Mapping) and settings.get("shaping") == "auto":
        metadata["settings"] = {**settings, "shaping": None}
    return metadata | {"fusion": None, "tuning": None}


def _tuning(facts: Mapping[str, object]) -> Tuning:
    others = {name: value for name, value in facts.items() if name != "settings"}
    figures = msgspec.convert(others, TuningFigures)
    settings = Settings.from_json(facts["settings"])  # type: ignore[arg-type]  # what is no mapping is refused there
    return Tuning(**msgspec.structs.asdict(figures), settings=settings)


def _with_fusion(state: FittedState, facts: _FusionFacts, tensors: Mapping[str, Tensor]) -> FittedState:
    """Return the state with panel and scales, checked."""
    scales, features = tensors["fusion.scales"], state.weight.shape[1]
    parts = {name.removeprefix("panel."): tensor for name, tensor in tensors.items() if name.startswith("panel.")}
    head = {"weight": state.weight.double(), "pruned_weight": state.pruned.weight.double()}
    if state.bias is not None:
        head["bias"] = state.bias.double()
    panel = Panel.from_parts({**parts, **head}, facts.numbers)
    patterns = {  # -1: of any length
        "mean": (features,),
        "gaussian.center": (features,),
        "gaussian.whitening": (features, features),
        "gaussian.background": (features, features),
        "gaussian.means": (-1, features),
        "space.origin": (features,),
        "space.basis": (features, -1),
    }
    for name, tensor in parts.items():
        pattern = patterns.get(name, tensor.shape)
        is_alike = tensor.ndim == len(pattern) and all(
            want in (-1, length) for want, length in zip(pattern, tensor.shape, strict=True)
        )
        if tensor.dtype != torch.float64 or not is_alike or (name == "gaussian.means" and len(tensor) == 0):
            raise ShapeError(f"The part {name} of its panel is {tensor.dtype} of shape {tuple(tensor.shape)}.")
        require_finite(tensor, name=name)
    asked = state.settings.members or ()
    if not facts.fused or sorted((*facts.fused, *facts.left_out)) != sorted(asked):
        raise OptionError("Its members are not those of its settings.")
    if scales.dtype != torch.float64 or scales.shape != (2, len(facts.fused)):
        raise ShapeError("Its scales are not those of its members.")
    require_finite(scales, name="scales")
    if not bool((scales[1] > scales[0]).all()) or facts.kept < 1 or REACT_QUANTILE not in state.react_thresholds:
        raise OptionError("Its scales measure nothing.")
    fitted = replace(
        state, panel=panel, scales=scales, fused=facts.fused, left_out=dict(facts.left_out), kept=facts.kept
    )
    fitted.member_scores(
        state.weight.new_zeros(1, features)
    )  # that nothing is missing shows at once, and not at the first score
    return fitted


def _calibration(
    scores: Tensor, members: Tensor | None, classes: Tensor | None, *, keep: float | None, state: FittedState
) -> Calibration:
    """Return the calibration by stored scores."""
    if scores.ndim != 1 or scores.dtype != torch.float64 or keep is None:
        raise ShapeError("The calibration it holds is no vector of float64 with a share to keep.")
    if bool(scores.isnan().any()) or (state.panel is None and not bool(scores.isfinite().all())):
        raise NonFiniteError("The calibration scores it holds are not finite.")
    expected = None if state.panel is None else (len(scores), len(state.explained))
    if (None if members is None else tuple(members.shape)) != expected:
        raise ShapeError("The calibration it holds is not that of its members.")
    if members is not None and (members.dtype not in _FLOATS or bool(members.isnan().any())):
        raise NonFiniteError("The members' calibration scores it holds are no numbers.")
    if classes is None:
        return Calibration.from_scores(scores, keep=keep, members=members)
    count = len(state.weight)
    if (
        classes.dtype != torch.int64
        or classes.shape != scores.shape
        or not bool((classes.clamp(0, count - 1) == classes).all())
    ):
        raise ShapeError("The classes of its calibration samples are not those of its head.")
    return Calibration.by_class(scores, classes, keep=keep, class_count=count, members=members)


def _require_consistent(state: FittedState, *, sha256: str) -> None:
    """Raise if the parts do not belong together, or nothing can be computed with them."""
    sensitivity, weight, bias = state.sensitivity, state.weight, state.bias
    if head_digest(weight, bias) != sha256:
        raise ArtifactError("The head it holds is not the one it was made from.")
    checked_head(weight, bias)
    names = None if state.origin is None else state.origin.class_names
    if names is not None and len(names) != len(weight):
        raise OptionError("It names another number of classes than its head has.")
    if state.feature_names is not None and len({*state.feature_names}) != weight.shape[1]:
        raise OptionError("It names other features than its head has.")
    parts = sensitivity.weight, sensitivity.neuron_gradient, sensitivity.neuron_aggregate
    if tuple(part.shape for part in parts) != (weight.shape, weight.shape[1:], weight.shape[1:]):
        raise ShapeError("The sensitivities it holds are those of another head.")
    if weight.shape[1] == 0 or sensitivity.count < 1:
        raise ShapeError("It holds a head without features, or sensitivities of no sample.")
    if any(part.dtype not in _FLOATS for part in (*parts, weight, weight if bias is None else bias)):
        raise InputTypeError("It holds numbers of a type that cannot be computed with.")
    for part in parts:
        require_finite(part, name="sensitivities")
    shaping = state.settings.shaping
    if isinstance(shaping, ReAct) and shaping.quantile not in state.react_thresholds:
        raise OptionError("The threshold of ReAct is missing.")
    state.pruned  # noqa: B018  # ratios that leave nothing of the head

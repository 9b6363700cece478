"""A model by name, opened again as at the fit: with the same weights and inputs, or a message of what differs."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from opnp.adapters.hub_cache import is_hub_name
from opnp.adapters.hubs import model_from_name
from opnp.adapters.onnx_models import OnnxClassifier
from opnp.artifact import tensors_digest
from opnp.core.checks import two_class_head
from opnp.data import Preprocessing, Transform
from opnp.data.class_order import model_class_names
from opnp.errors import HeadMismatchError, InputTypeError, MissingFileError, OptionError
from opnp.fitted import head_digest
from opnp.model import head_layers, plain_tensor, unwrapped
from opnp.values.origin import ModelOrigin

__all__ = [
    "json_facts",
    "model_origin",
    "model_tensors",
    "origin_without_folders",
    "remembered_model",
    "require_same_inputs",
    "require_same_model",
    "require_same_weights",
    "stored_model",
    "stored_preprocessing",
    "stored_weights",
]

_VERSIONS = ("timm", "transformers")
"""Facts of a transform that say which release of a package made it."""

_MOST, _LONG = 3, 40
"""Facts that a message names, and characters of each."""

_HERE = {"hf": "FOLDER", "sentence-transformers": "FOLDER", "onnx": "FILE"}
"""What names of these kinds go on with: a place on this machine; of the first two a name on a hub, too."""


def model_origin(
    model: nn.Module,
    transform: Transform,
    *,
    name: str,
    weights: Path | None,
    detector: Path,
    classes: int,
    class_names: Sequence[str] | None = None,
) -> ModelOrigin:
    """Return what is to be known to open a model again as it is here.

    Args:
        model: The model, with its weights.
        transform: What makes its inputs.
        name: Its name, as `model_from_name` takes it.
        weights: The file of weights, or None.
        detector: The file that the detector is written to; paths are taken relative to its folder.
        classes: Rows of its head.
        class_names: Names of the classes, for a model that brings none.

    """
    folder = detector.absolute().parent
    kind, _, place = name.partition(":")
    if kind in _HERE and Path(place).exists():
        place = _relative(Path(place), folder)
        name = f"{kind}:{'./' if _can_be_of_hub(kind, place) else ''}{place}"
    return ModelOrigin(
        model=name,
        weights=None if weights is None else _relative(weights, folder),
        weights_sha256=weights_digest(model),
        kind=transform.kind,
        inputs=json_facts(transform),
        class_names=model_class_names(model, classes) or (tuple(class_names) if class_names else None),
    )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and values of what a model computes with."""
    return tensors_digest(model_tensors(model))


def json_facts(transform: Transform) -> dict[str, object]:
    """Return what a transform's results depend on, as a file gives it back."""
    facts: dict[str, object] = json.loads(json.dumps(dict(transform.facts())))
    return facts


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model computes with, by name, as plain tensors: parameters, buffers, and packed quantised weights.

    Raises:
        InputTypeError: If one is on the meta device.

    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, module in model.named_modules():
        packed = getattr(module, "_weight_bias", None)  # of quantised layers, whose weights are no parameters
        if callable(packed):
            weight, bias = packed()
            tensors[f"{name} weight"] = weight.dequantize()
            tensors |= {} if bias is None else {f"{name} bias": bias}
    for name, tensor in tensors.items():
        whole = plain_tensor(tensor)
        if whole.is_meta:
            raise InputTypeError(
                f"{name!r} of the model is on the meta device, where it has no values: load the model's weights first."
            )
        tensors[name] = whole if whole.layout is torch.strided else whole.to_dense()
    return tensors


def remembered_model(
    origin: ModelOrigin, detector: Path, *, name: str | None = None, weights: str | os.PathLike[str] | None = None
) -> tuple[str, nn.Module, Transform | None]:
    """Return the model of a detector: its name, itself, and what makes its inputs, None where nothing tells.

    Args:
        origin: What the detector remembers.
        detector: Its file; what it remembers by a relative path is looked for from there.
        name: Another name of the model, or None.
        weights: Another place of its weights, or None.

    Raises:
        MissingFileError: If model or weights are a file that is not there.
        OptionError: If there is no such model.

    """
    name = name or stored_model(origin, detector)
    model, known = model_from_name(name, weights=stored_weights(origin, detector) if weights is None else weights)
    return name, model, stored_preprocessing(origin) or known


def require_same_model(origin: ModelOrigin, model: nn.Module, transform: Transform, *, head_sha256: str) -> None:
    """Raise unless a model and its inputs are those of the fit: `require_same_inputs` and `require_same_weights`."""
    require_same_inputs(origin, transform)
    require_same_weights(origin, model, head_sha256=head_sha256)


def stored_model(origin: ModelOrigin, detector: Path) -> str:
    """Return the name by which the model of a detector can be opened on this machine.

    A file or folder is looked for at its place relative to the detector, then beside the detector. The name of a model
    on a hub stays as it is.

    Raises:
        MissingFileError: If it is at neither place.

    """
    name = origin.model
    kind, _, place = name.partition(":")
    is_here = (detector.absolute().parent / place).exists()
    if kind in _HERE and (is_here or not _can_be_of_hub(kind, place)):
        return f"{kind}:{_found(place, detector, option=f'--model {kind}:{_HERE[kind]}')}"
    return name


def origin_without_folders(origin: ModelOrigin) -> ModelOrigin:
    """Return what a detector remembers with the bare names of files and folders, which are looked for beside it.

    Example:
        >>> origin = ModelOrigin("onnx:../me/net.onnx", "../../me/w.safetensors", "0" * 64, "image", {})
        >>> bare = origin_without_folders(origin)
        >>> bare.model, bare.weights
        ('onnx:net.onnx', 'w.safetensors')

    """
    kind, _, place = origin.model.partition(":")
    name, weights = origin.model, origin.weights
    if kind in _HERE and not _can_be_of_hub(kind, place):
        bare = Path(place).name or place
        name = f"{kind}:{'./' if _can_be_of_hub(kind, bare) else ''}{bare}"
    return replace(origin, model=name, weights=None if weights is None else Path(weights).name)


def stored_weights(origin: ModelOrigin, detector: Path) -> Path | None:
    """Return the file of weights of a detector's model, looked for as `stored_model` does; None if there was none.

    Raises:
        MissingFileError: If it is at neither place.

    """
    return None if origin.weights is None else _found(origin.weights, detector, option="--weights FILE")


def stored_preprocessing(origin: ModelOrigin) -> Preprocessing | None:
    """Return the preprocessing that a detector remembers; None where it was the model's own code.

    Raises:
        OptionError: If a value of it is out of range.

    """
    facts = dict(origin.inputs)
    if origin.kind != "image" or facts.keys() != {field.name for field in fields(Preprocessing)}:
        return None
    pairs = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in facts.items()}
    return Preprocessing(**pairs)  # type: ignore[arg-type]  # checked there


def require_same_inputs(origin: ModelOrigin, transform: Transform) -> None:
    """Raise if inputs are made otherwise than at the fit; another release of the package that makes them is no matter.

    Raises:
        OptionError: If so; the message names what differs.

    """
    here = json_facts(transform)
    names = [name for name in {**origin.inputs, **here} if name not in _VERSIONS]
    differing = [name for name in names if origin.inputs.get(name) != here.get(name)]
    if transform.kind == origin.kind and not differing:
        return
    pairs = [f"{name} {_shown(here.get(name))} for {_shown(origin.inputs.get(name))}" for name in differing]
    raise OptionError(
        f"These inputs are made otherwise than at the detector's fit: {', '.join(pairs[:_MOST]) or transform.kind}. "
        f"Leave the options out, as the detector remembers them, or go on all the same with `--force`."
    )


def require_same_weights(origin: ModelOrigin, model: nn.Module, *, head_sha256: str) -> None:
    """Raise if a model with the head of the fit has other weights elsewhere.

    Of another head `OPNP.attach` speaks: it refuses it, or warns where the weights are stored in another type.

    Raises:
        HeadMismatchError: If so.

    """
    layers = head_layers(unwrapped(model)).values()
    heads = (two_class_head(layer.weight.detach().flatten(1), layer.bias) for layer in layers)  # as detectors hold one
    has_head = any(head_digest(*head) == head_sha256 for head in heads)
    if not has_head or weights_digest(model) == origin.weights_sha256:
        return
    if isinstance(unwrapped(model), OnnxClassifier):
        raise HeadMismatchError(
            "The graph has the head of the detector's fit, and is another file: it was written anew, or computes "
            "something else before the head. Give the file of the fit, fit again, or, where both are the same network, "
            "go on with `--force`."
        )
    raise HeadMismatchError(
        "The model has the head of the detector's fit, and other weights elsewhere. Give those of the fit, fit again, "
        "or go on all the same with `--force`."
    )


def _can_be_of_hub(kind: str, place: str) -> bool:
    """Return whether a folder, as it is remembered, could be the name of a model; sentence encoders have short ones."""
    if kind == "sentence-transformers":
        return is_hub_name(place if "/" in place else f"{kind}/{place}")
    return kind == "hf" and is_hub_name(place)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder)).as_posix()


def _found(stored: str, detector: Path, *, option: str) -> Path:
    folder = detector.absolute().parent
    for place in (folder / stored, folder / Path(stored).name):
        if place.exists():
            return place
    raise MissingFileError(
        f"{detector} was fitted on a model with {stored}, which is neither there, seen from the detector's folder, nor "
        f"beside the detector: give `{option}`."
    )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."

"""A model by name, opened again as at the fit: with the same weights and inputs, or a message of what differs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp.artifact import tensors_digest
from opnp.data import Preprocessing, Transform
from opnp.data.class_order import model_class_names
from opnp.errors import HeadMismatchError, MissingFileError, OptionError
from opnp.fitted import head_digest
from opnp.model import head_layers, plain_tensor, unwrapped
from opnp.values.origin import ModelOrigin

__all__ = ["model_origin", "require_same_inputs", "require_same_weights", "stored_preprocessing", "stored_source"]

_VERSIONS = ("timm", "transformers")
"""Facts of a transform that say which release of a package made it."""

_MOST, _LONG = 3, 40
"""Facts that a message names, and characters of each."""

_HERE = {"hf": "FOLDER", "onnx": "FILE"}
"""What names of these kinds go on with: a place on this machine."""


def model_origin(
    model: nn.Module,
    transform: Transform,
    *,
    name: str,
    weights: Path | None,
    detector: Path,
    head_layer: str | None = None,
    logits: int | str | None = None,
    class_names: Sequence[str] | None = None,
) -> ModelOrigin:
    """Return what is to be known to open a model again as it is here.

    Args:
        model: The model, with its weights.
        transform: What makes its inputs.
        name: Its name, as `model_from_name` takes it.
        weights: The file of weights, or None.
        detector: The file that the detector is written to; paths are taken relative to its folder.
        head_layer: Name of the head that was asked for.
        logits: Where the logits are in the model's output.
        class_names: Names of the classes, for a model that brings none.

    """
    folder = detector.absolute().parent
    kind, _, place = name.partition(":")
    return ModelOrigin(
        model=f"{kind}:{_relative(Path(place), folder)}" if kind in _HERE else name,
        weights=None if weights is None else _relative(weights, folder),
        weights_sha256=weights_digest(model),
        kind=transform.kind,
        inputs=json.loads(json.dumps(dict(transform.facts()))),
        head_layer=head_layer,
        logits=logits,
        class_names=model_class_names(model) or (None if class_names is None else tuple(class_names)),
    )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and values of a model's parameters and buffers."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            whole = plain_tensor(value)
            tensors[name] = whole if whole.layout is torch.strided else whole.to_dense()
    return tensors_digest(tensors)


def stored_source(origin: ModelOrigin, detector: Path, *, is_named: bool = False) -> tuple[str, Path | None]:
    """Return name and file of weights by which the model of a detector can be opened on this machine.

    A file or folder is looked for at its place relative to the detector, then beside the detector.

    Args:
        origin: What the detector remembers.
        detector: Its file.
        is_named: Whether the name is known already, so that the weights alone are looked for.

    Raises:
        MissingFileError: If it is at neither place.

    """
    name = origin.model
    kind, _, place = name.partition(":")
    if kind in _HERE and not is_named:
        name = f"{kind}:{_found(place, detector, option=f'--model {kind}:{_HERE[kind]}')}"
    weights = None if origin.weights is None else _found(origin.weights, detector, option="--weights FILE")
    return name, weights


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
    here: Mapping[str, object] = json.loads(json.dumps(dict(transform.facts())))
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
    heads = head_layers(unwrapped(model)).values()
    has_head = any(head_digest(layer.weight.flatten(1), layer.bias) == head_sha256 for layer in heads)
    if not has_head or weights_digest(model) == origin.weights_sha256:
        return
    raise HeadMismatchError(
        "The model has the head of the detector's fit, and other weights elsewhere. Give those of the fit, fit again, "
        "or go on all the same with `--force`."
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder)).as_posix()


def _found(stored: str, detector: Path, *, option: str) -> Path:
    folder = detector.absolute().parent
    for place in (folder / stored, folder / Path(stored).name):
        if place.exists():
            return place
    raise MissingFileError(
        f"{detector} was fitted on a model whose {Path(stored).name} is neither at {stored} from there nor beside it: "
        f"give `{option}`."
    )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."

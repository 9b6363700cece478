"""Where cached features come from: a record beside them, by which stale ones are told from those that can be kept."""

import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Self

import torch
from torch import Tensor, nn

from opnp.artifact import tensors_digest
from opnp.data import InputSet, Transform, file_digest
from opnp.data.files import printable_name
from opnp.errors import DataFileError, InputTypeError, OptionError
from opnp.files import existing_file, write_atomically
from opnp.files.json_text import json_values
from opnp.files.typed_json import typed_value
from opnp.model import plain_tensor, require_values

__all__ = ["SOURCE_FILE", "FeatureSource", "ModelSource", "SetSource", "model_source", "require_set_names"]

SOURCE_FILE = "source.json"

_FORMAT = 1
_SET_NAME = re.compile(r"train|test|ood_[\w.+-]+")
_PACKAGES = ("opnp", "torch")
_OF_SAMPLES = {"image": ("pillow",), "text": ()}
_OF_HUBS = {"timm": ("timm",), "torchvision": ("torchvision",), "hf": ("transformers", "tokenizers")}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What turned inputs into features. Two that are equal give the same features of the same inputs.

    Attributes:
        model: Name of the model, as it was given.
        weights: Name of the file of weights; None where there was none.
        weights_sha256: Digest of that file.
        model_sha256: Digest of the model's layers, parameters, buffers and code.
        head: Name of the head that was asked for; None where it was found.
        dtype: Type of the stored features.
        preprocessing: What was done to the images or texts: facts of the transform.
        versions: Versions of the packages that the features depend on.
        forward: How the model was run, where that changes features; empty for float32 as the model is.

    """

    model: str
    weights: str | None
    weights_sha256: str | None
    model_sha256: str
    head: str | None
    dtype: str
    preprocessing: Mapping[str, object]
    versions: Mapping[str, str]
    forward: Mapping[str, object] = field(default_factory=dict)

    def differences(self, other: Self) -> list[str]:
        """Return the names of the attributes that differ.

        Example:
            >>> one = ModelSource("a:b", None, None, "00", None, "float16", {}, {})
            >>> one.differences(ModelSource("a:b", None, None, "11", None, "float32", {}, {}))
            ['model_sha256', 'dtype']

        """
        return [item.name for item in fields(self) if getattr(self, item.name) != getattr(other, item.name)]


@dataclass(frozen=True, slots=True)
class SetSource:
    """What a file of features was made from.

    Attributes:
        images: Name of the folder or file of inputs: images or texts.
        samples: How many of them were read, so that there are features of them.
        images_sha256: Digest of the inputs' names and contents.
        features_sha256: Digest of the file of features.
        accuracy: Share of right answers of the model, where labels are known and ID; else None.
        unreadable: Names of the inputs that could not be read, in the order of rows, each with the reason.

    """

    images: str
    samples: int
    images_sha256: str
    features_sha256: str
    accuracy: float | None
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def total(self) -> int:
        """How many inputs there are, those that could not be read counted too."""
        return self.samples + len(self.unreadable)

    @classmethod
    def from_inputs(cls, inputs: InputSet) -> Self:
        """Return what is known before the features are there."""
        source = inputs.source
        return cls(
            printable_name(source.path.resolve().name), len(inputs), source.digest(), features_sha256="", accuracy=None
        )

    def after_pass(self, *, unreadable: tuple[tuple[str, str], ...], accuracy: float | None) -> Self:
        """Return the same with what a pass over all inputs has shown."""
        return replace(self, samples=self.total - len(unreadable), unreadable=unreadable, accuracy=accuracy)

    def stored_in(self, file: Path) -> Self:
        """Return the same with the digest of the file of features."""
        return replace(self, features_sha256=file_digest(file))

    def is_of_same_inputs(self, other: Self) -> bool:
        """Return whether name, number and content of the inputs are equal."""
        return (self.images, self.total, self.images_sha256) == (other.images, other.total, other.images_sha256)


@dataclass(frozen=True, slots=True)
class FeatureSource:
    """The record of a folder of features.

    Attributes:
        model: What turned images into features.
        head: Name of the head within the model.
        head_sha256: Digest of the file of the head.
        sets: What the files of features were made from, by name: ``train``, ``test`` and ``ood_*``.

    """

    model: ModelSource
    head: str
    head_sha256: str
    sets: Mapping[str, SetSource]

    def content(self) -> bytes:
        """Return the content of its file."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()

    def write(self, folder: Path) -> None:
        """Write the record to a folder."""
        write_atomically(folder / SOURCE_FILE, self.content())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the record of a folder.

        Raises:
            MissingFileError: If there is none.
            DataFileError: If it cannot be read.

        """
        path = existing_file(Path(folder) / SOURCE_FILE, content="where the features come from")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataFileError(f"{path} cannot be read ({error}): remove the folder, and cache again.") from error
        return cls.from_content(content, path=path)

    @classmethod
    def from_content(cls, content: bytes, *, path: Path) -> Self:
        """Return the record that a file at `path` holds.

        Raises:
            DataFileError: If it cannot be read.

        """
        try:
            values = json_values(content.decode("utf-8"))
            found = values.pop("format")
            if found == _FORMAT:
                source = typed_value(cls, values)
                require_set_names(source.sets)
                return source
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"{path} cannot be read ({error}): remove the folder, and cache again.") from error
        raise DataFileError(f"{path} has format {found!r}, and this opnp reads {_FORMAT}: remove the folder.")

    def with_set(self, name: str, source: SetSource) -> Self:
        """Return the record with one more set."""
        return replace(self, sets={**self.sets, name: source})

    def without_set(self, name: str) -> Self:
        """Return the record without a set."""
        return replace(self, sets={each: source for each, source in self.sets.items() if each != name})


def require_set_names(names: Iterable[str]) -> None:
    """Raise unless these can be names of sets, and so of files in a folder of features.

    Raises:
        OptionError: If one is neither ``train`` nor ``test`` nor ``ood_*``, with letters, digits and ``._+-``.

    """
    wrong = [name for name in names if not _SET_NAME.fullmatch(name)]
    if wrong:
        raise OptionError(
            f"`sets` must be called train, test or ood_NAME, with letters, digits and ._+- in NAME, got {wrong[0]!r}.",
        )


def model_source(
    model: nn.Module,
    *,
    name: str,
    weights: str | os.PathLike[str] | None,
    head: str | None,
    dtype: torch.dtype,
    transform: Transform,
    forward: Mapping[str, object] | None = None,
) -> ModelSource:
    """Return what is to be known of a model, to tell its features from those of another.

    Args:
        model: The model. Its digest covers layers, parameters, buffers, and the files that its classes and the callable
            that made it are written in; what those import is not looked at.
        name: What the model is called.
        weights: File that its weights came from, or None.
        head: Name of the head that is asked for, or None.
        dtype: Type that the features are stored in.
        transform: What is done to the inputs.
        forward: How the model is run, where that changes features.

    """
    require_values(model)
    tensors = _tensors(model)
    hub = name.partition(":")[0]
    code = sorted({_code_digest(part) for part in (*map(type, model.modules()), sys.modules.get(hub))})
    return ModelSource(
        model=name,
        weights=None if weights is None else Path(weights).name,
        weights_sha256=None if weights is None else file_digest(Path(weights)),
        model_sha256=tensors_digest(tensors, text=f"{model}{code}"),
        head=head,
        dtype=str(dtype).removeprefix("torch."),
        preprocessing=json.loads(json.dumps(dict(transform.facts()))),
        versions=_versions(transform, hub),
        forward=dict(forward or {}),
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
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


def _versions(transform: Transform, hub: str) -> dict[str, str]:
    """Return the versions of what the features depend on, of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_OF_SAMPLES[transform.kind], *_OF_HUBS.get(hub, ())):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _code_digest(part: type | ModuleType | None) -> str:
    if part is None:
        return ""
    try:
        return file_digest(Path(inspect.getfile(part)))
    except (OSError, TypeError):  # written in no file
        return ""

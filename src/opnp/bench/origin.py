"""Where cached features come from: a record beside them, by which stale ones are told from those that can be kept."""

import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Self

import msgspec
import torch
from msgspec.structs import replace
from torch import nn

from opnp.adapters.origin import json_facts, model_tensors
from opnp.artifact import tensors_digest
from opnp.bench.odin import ODIN_FILE
from opnp.data import FeatureSet, InputSet, Transform, file_digest, write_features, write_head
from opnp.data.samples import printable_name
from opnp.errors import DataFileError, OptionError
from opnp.files import existing_file, write_atomically
from opnp.model import Head, require_values
from opnp.values.files import FEATURE_FILE
from opnp.values.reading import Share, Value, json_values

__all__ = [
    "SOURCE_FILE",
    "CacheFolder",
    "FeatureSource",
    "ModelSource",
    "SetSource",
    "model_source",
    "require_set_names",
]

SOURCE_FILE = "source.json"

_FORMAT = 1
_SET_NAME = re.compile(r"train|test|validation_ood|ood_[\w.+-]+")
_PACKAGES = ("opnp", "torch")
_OF_SAMPLES = {"image": ("pillow",), "text": ()}
_OF_HUBS = {"timm": ("timm",), "torchvision": ("torchvision",), "hf": ("transformers", "tokenizers")}
_HEAD = "head.safetensors"
_TITLES = {
    "model": "name of the model",
    "weights": "file of weights",
    "weights_sha256": "content of the weights",
    "model_sha256": "the model itself",
    "head": "head asked for",
    "head_sha256": f"content of {_HEAD}",
    "dtype": "type of the features",
    "preprocessing": "preprocessing",
    "versions": "versions of packages",
    "forward": "options of the forward pass",
}


class ModelSource(Value, frozen=True):
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
    forward: Mapping[str, object] = {}

    def differences(self, other: Self) -> list[str]:
        """Return the names of the attributes that differ.

        Example:
            >>> one = ModelSource("a:b", None, None, "00", None, "float16", {}, {})
            >>> one.differences(ModelSource("a:b", None, None, "11", None, "float32", {}, {}))
            ['model_sha256', 'dtype']

        """
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]


class SetSource(Value, frozen=True):
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
    accuracy: Share | None
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

    def is_of_same_inputs(self, other: Self) -> bool:
        """Return whether name, number and content of the inputs are equal."""
        return (self.images, self.total, self.images_sha256) == (other.images, other.total, other.images_sha256)


class FeatureSource(Value, frozen=True):
    """The record of a folder of features.

    Attributes:
        model: What turned images into features.
        head: Name of the head within the model.
        head_sha256: Digest of the file of the head; empty before there is one, and so before there are any features.
        sets: What the files of features were made from, by name: ``train``, ``test``, ``validation_ood`` and ``ood_*``.

    """

    model: ModelSource
    head: str
    head_sha256: str
    sets: Mapping[str, SetSource]

    def content(self) -> bytes:
        """Return the content of its file."""
        return (json.dumps({"format": _FORMAT, **msgspec.to_builtins(self)}, indent=1, sort_keys=True) + "\n").encode()

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
        return cls.from_content(path.read_bytes(), path=path)

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
                source = msgspec.convert(values, cls)
                require_set_names(source.sets)
                return source
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"{path} cannot be read ({error}): remove the folder, and cache again.") from error
        raise DataFileError(f"{path} has format {found!r}, and this opnp reads {_FORMAT}: remove the folder.")


@dataclass(eq=False, slots=True)
class CacheFolder:
    """Features of one model in a folder, with the record of where they come from.

    Attributes:
        path: The folder.
        model: What turns inputs into its features.
        source: The record; None before the head is known.

    """

    path: Path
    model: ModelSource
    source: FeatureSource | None

    @classmethod
    def opened(cls, path: Path, model: ModelSource, *, is_replacing: bool) -> Self:
        """Return the folder for the features of a model.

        Args:
            path: The folder; it need not exist yet.
            model: The model.
            is_replacing: Whether features of another model are removed from it; else they are refused.

        Raises:
            DataFileError: If it is a file, holds features of another model, or of unknown origin.

        """
        if path.exists() and not path.is_dir():
            raise DataFileError(f"{path} is a file: name a folder for the features.")
        if not (path / SOURCE_FILE).is_file():
            names = sorted(each.name for each in path.iterdir()) if path.exists() else []
            foreign = next((each for each in names if FEATURE_FILE.fullmatch(each)), None)
            if foreign is not None:
                raise DataFileError(
                    f"{path} holds {foreign} without {SOURCE_FILE}, so that nothing tells where it comes from: choose "
                    f"another folder.",
                )
            return cls(path, model, None)
        source = FeatureSource.read(path)
        if not source.head_sha256:
            return cls(path, model, None)
        differing = model.differences(source.model)
        if not differing and not _is_file(path / _HEAD, source.head_sha256):
            differing = ["head_sha256"]
        if not differing:
            return cls(path, model, source)
        if not is_replacing:
            raise DataFileError(
                f"{path} holds features of another origin ({', '.join(_TITLES[name] for name in differing)}): remove "
                f"it, or choose another folder.",
            )
        # The record goes last, and comes first: a folder of features without it is refused.
        for name in (ODIN_FILE, *(f"{each}.safetensors" for each in source.sets), _HEAD, SOURCE_FILE):
            (path / name).unlink(missing_ok=True)
        return cls(path, model, None)

    def holds(self, name: str, inputs: SetSource) -> bool:
        """Return whether the features of these inputs are there, whole and unchanged."""
        found = None if self.source is None else self.source.sets.get(name)
        return (
            found is not None
            and found.is_of_same_inputs(inputs)
            and _is_file(self.path / f"{name}.safetensors", found.features_sha256)
        )

    def require_readable(self, names: Iterable[str]) -> None:
        """Raise if features of these sets were computed without inputs that could not be read.

        Raises:
            DataFileError: If so; the message names the first.

        """
        for name in names:
            for each, reason in () if self.source is None else self.source.sets[name].unreadable:
                raise DataFileError(f"{name}: {each} cannot be read ({reason}): mend or remove it.")

    def forget(self, name: str) -> None:
        """Remove a set, so that nothing stale is left if what comes next is cut short."""
        if self.source is not None and name in self.source.sets:
            others = {each: kept for each, kept in self.source.sets.items() if each != name}
            self.source = replace(self.source, sets=others)
            self.source.write(self.path)
        (self.path / f"{name}.safetensors").unlink(missing_ok=True)

    def store(self, name: str, features: FeatureSet, inputs: SetSource, *, head: Head) -> None:
        """Write a set, and the head with the first one."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.source is None:
            begun = FeatureSource(self.model, head.name, head_sha256="", sets={})
            begun.write(self.path)
            write_head(self.path / _HEAD, head.weight, bias=head.bias)
            self.source = replace(begun, head_sha256=file_digest(self.path / _HEAD))
            self.source.write(self.path)
        file = self.path / f"{name}.safetensors"
        write_features(file, features.features, labels=features.labels)
        stored = replace(inputs, features_sha256=file_digest(file))
        self.source = replace(self.source, sets={**self.source.sets, name: stored})
        self.source.write(self.path)


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def require_set_names(names: Iterable[str]) -> None:
    """Raise unless these can be names of sets, and so of files in a folder of features.

    Raises:
        OptionError: If one is none of ``train``, ``test``, ``validation_ood`` and ``ood_*``, the last with letters,
            digits and ``._+-``.

    """
    wrong = [name for name in names if not _SET_NAME.fullmatch(name)]
    if wrong:
        raise OptionError(
            f"`sets` must be called train, test, validation_ood or ood_NAME, with letters, digits and ._+- in NAME, "
            f"got {wrong[0]!r}.",
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
    tensors = model_tensors(model)
    hub = name.partition(":")[0]
    code = sorted({_code_digest(part) for part in (*map(type, model.modules()), sys.modules.get(hub))})
    return ModelSource(
        model=name,
        weights=None if weights is None else Path(weights).name,
        weights_sha256=None if weights is None else file_digest(Path(weights)),
        model_sha256=tensors_digest(tensors, text=f"{model}{code}"),
        head=head,
        dtype=str(dtype).removeprefix("torch."),
        preprocessing=json_facts(transform),
        versions=_versions(transform, hub),
        forward=dict(forward or {}),
    )


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

"""A folder of features that grows set by set, and knows at any time which of its files are whole and of what."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from opnp.bench.feature_files import FEATURE_FILE
from opnp.bench.feature_source import SOURCE_FILE, FeatureSource, ModelSource, SetSource
from opnp.bench.odin_file import ODIN_FILE
from opnp.data import FeatureSet, file_digest, write_features, write_head
from opnp.errors import DataFileError
from opnp.model import Head

__all__ = ["CacheFolder"]

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
            foreign = next((each for each in sorted(_names(path)) if FEATURE_FILE.fullmatch(each)), None)
            if foreign is not None:
                raise DataFileError(
                    f"{path} holds {foreign} without {SOURCE_FILE}, so that nothing tells where it comes from: choose "
                    f"another folder.",
                )
            return cls(path, model, None)
        source = FeatureSource.read(path)
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
        for name in (SOURCE_FILE, ODIN_FILE, *(f"{each}.safetensors" for each in source.sets), _HEAD):
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
            self.source = self.source.without_set(name)
            self.source.write(self.path)
        (self.path / f"{name}.safetensors").unlink(missing_ok=True)

    def store(self, name: str, features: FeatureSet, inputs: SetSource, *, head: Head) -> None:
        """Write a set, and the head with the first one."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.source is None:
            write_head(self.path / _HEAD, head.weight, bias=head.bias)
            self.source = FeatureSource(self.model, head.name, file_digest(self.path / _HEAD), {})
            self.source.write(self.path)
        file = self.path / f"{name}.safetensors"
        write_features(file, features.features, labels=features.labels)
        self.source = self.source.with_set(name, inputs.stored_in(file))
        self.source.write(self.path)


def _names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()] if folder.exists() else []


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256

"""Folders of cached features: ``head``, ``train``, ``test`` and ``ood_*`` as safetensors files, one folder a model.

``validation_ood`` may stand beside them: OOD samples that ratios are tuned by, and nothing is judged by.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opnp.bench.figures import detection_figures
from opnp.bench.odin import OdinScores, read_odin
from opnp.core.checks import require_finite
from opnp.core.labels import NO_LABEL
from opnp.data import FeatureSet, LinearHead, file_digest, read_features, read_head
from opnp.errors import DataFileError, MissingFileError, NonFiniteError, OptionError
from opnp.values.bench import DataSource
from opnp.values.figures import Nearness, means_by_side

__all__ = [
    "IdSplit",
    "ModelData",
    "feature_folders",
    "read_feature_folder",
    "read_models",
    "require_seed",
    "split_test",
]

_LAYOUT = "head.safetensors, train.safetensors, test.safetensors and ood_*.safetensors"
_MOST = 2000
_END = 2**63


@dataclass(frozen=True, eq=False, slots=True)
class ModelData:
    """What is known of one model.

    Attributes:
        name: Name of the model: its folder's.
        head: The classifier's last layer.
        train: Features of training data, with labels if there are any.
        test: Features of held-out ID data, with labels if there are any.
        ood: Features of OOD sets by name, which is the file's without ``ood_``.
        sources: Files by name: ``head``, ``train``, ``test``, ``ood_*``, and ``validation_ood`` if there is one.
        odin: ODIN's scores, if they were stored beside the features.
        validation_ood: Features of OOD validation samples, if there are any.

    """

    name: str
    head: LinearHead
    train: FeatureSet
    test: FeatureSet
    ood: dict[str, Tensor]
    sources: dict[str, DataSource]
    odin: OdinScores | None = None
    validation_ood: Tensor | None = None

    @property
    def classes(self) -> int:
        """Rows of the head."""
        return len(self.head.weight)

    @property
    def features(self) -> int:
        """Columns of the head."""
        return self.head.weight.shape[1]

    @property
    def judged(self) -> dict[str, Tensor]:
        """Features to judge by, by name of the file: ``test`` first, then ``ood_*``."""
        return {"test": self.test.features, **{f"ood_{name}": features for name, features in self.ood.items()}}

    def nearness(self, near: Collection[str]) -> dict[str, Nearness]:
        """Return ``near`` or ``far`` by OOD set; near ones are named for every model, or as ``model:set`` for one."""
        return {name: "near" if name in near or f"{self.name}:{name}" in near else "far" for name in self.ood}

    def facts(self, near: Collection[str]) -> dict[str, Any]:
        """Return the attributes of a `JudgedModel`."""
        return {
            "model": self.name,
            "classes": self.classes,
            "features": self.features,
            "data": self.sources,
            "nearness": self.nearness(near),
        }

    def figures(self, scores: Iterable[Tensor], near: Collection[str]) -> dict[str, Any]:
        """Return the figures of an `Outcome` from the scores of each set of `judged`, in its order."""
        inside, *outside = scores
        detection = {name: detection_figures(inside, each) for name, each in zip(self.ood, outside, strict=True)}
        return {"detection": detection, **means_by_side(detection, self.nearness(near))}


def read_models(
    path: str | os.PathLike[str],
    *,
    near: Collection[str],
    ood: Iterable[str] | None = None,
    is_tunable: bool = True,
) -> list[ModelData]:
    """Return what the folders of models hold.

    Args:
        path: A folder of features, or a folder of such folders.
        near: Names of near OOD sets, for every model or as ``model:set`` for one.
        ood: Names of the OOD sets to read; None for all there are.
        is_tunable: Whether to read ``validation_ood`` where it is there.

    Raises:
        MissingFileError: If a folder or file is missing.
        DataFileError: If a file does not fit the others.
        OptionError: If a near set is no OOD set of any model, as where it is misspelt; the message names those that
            there are.

    """
    places = None if ood is None else tuple(ood)
    models = [read_feature_folder(folder, ood=places, is_tunable=is_tunable) for folder in feature_folders(path)]
    there = sorted({name for model in models for name in model.ood})
    pairs = {f"{model.name}:{name}" for model in models for name in model.ood}
    unknown = [name for name in near if name not in there and name not in pairs]
    if unknown:
        raise OptionError(
            f"`near` must name OOD sets that are there, or MODEL:SET, got {', '.join(sorted(unknown))}. There are: "
            f"{', '.join(there)}."
        )
    return models


@dataclass(frozen=True, eq=False, slots=True)
class IdSplit:
    """Rows of ``test``.

    Attributes:
        validation: Those given to validation, ascending, int64.
        rest: The others, ascending, int64.

    """

    validation: Tensor
    rest: Tensor


def feature_folders(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of models: `path` itself if it holds a head, else its subfolders that do, sorted by name.

    Raises:
        MissingFileError: If `path` is no folder, or there is no head in it.

    """
    path = Path(path)
    if not path.is_dir():
        reason = "is a file" if path.is_file() else "does not exist"
        raise MissingFileError(f"{path} {reason}: expected a folder with {_LAYOUT}, or a folder of such folders.")
    if (path / "head.safetensors").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("*/head.safetensors"))
    if not found:
        raise MissingFileError(f"{path} holds no model: expected {_LAYOUT} in it, or in folders in it.")
    return found


def read_feature_folder(
    path: str | os.PathLike[str], *, ood: Iterable[str] | None = None, is_tunable: bool = True
) -> ModelData:
    """Return what a folder holds, checked: widths agree with the head, values are finite, labels are class indices.

    Args:
        path: The folder.
        ood: Names of the OOD sets to read; None for all there are.
        is_tunable: Whether to read ``validation_ood`` where it is there.

    Raises:
        MissingFileError: If a file is missing, or there is no OOD set.
        DataFileError: If a file is unreadable, or does not fit the head.

    """
    path = Path(path)
    head = read_head(path / "head.safetensors")
    for tensor_name, tensor in (("weight", head.weight), ("bias", head.bias)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise DataFileError(f"{path / 'head.safetensors'}: `{tensor_name}` must be finite.")
    out_of_distribution = sorted(
        path.glob("ood_*.safetensors") if ood is None else {path / f"ood_{name}.safetensors" for name in ood},
    )
    if not out_of_distribution:
        raise MissingFileError(f"{path} holds no ood_*.safetensors: at least one OOD set is needed.")
    optional = [file for file in (path / "validation_ood.safetensors",) if is_tunable and file.is_file()]
    known = (path / "train.safetensors", path / "test.safetensors")
    files = {file.stem: file for file in (*known, *out_of_distribution, *optional)}
    sets = {stem: _checked(file, head) for stem, file in files.items()}
    samples = {"head": len(head.weight)} | {stem: len(found.features) for stem, found in sets.items()}
    tuning = sets.pop("validation_ood", None)
    return ModelData(
        name=path.resolve().name,
        head=head,
        train=_labelled(files["train"], sets.pop("train"), head),
        test=_labelled(files["test"], sets.pop("test"), head),
        ood={stem.removeprefix("ood_"): found.features for stem, found in sets.items()},
        sources={
            stem: DataSource(samples=samples[stem], sha256=file_digest(file))
            for stem, file in {"head": path / "head.safetensors", **files}.items()
        },
        odin=read_odin(path),
        validation_ood=None if tuning is None else tuning.features,
    )


def split_test(samples: int, *, validation_samples: int | None = None, seed: int = 0) -> IdSplit:
    """Return a random split of the rows of ``test``.

    Args:
        samples: Rows there are, at least 2.
        validation_samples: How many go to validation; None for 30 % to one significant digit, at most 2000.
        seed: Seed of the draw.

    Raises:
        OptionError: If that leaves one of the parts empty, or `seed` is out of range.

    Example:
        >>> [len(split_test(samples).validation) for samples in (10000, 1300, 50)]
        [2000, 400, 20]
        >>> split = split_test(10, validation_samples=3, seed=0)
        >>> len(split.validation), sorted(split.validation.tolist() + split.rest.tolist()) == list(range(10))
        (3, True)

    """
    require_seed(seed)
    if validation_samples is None:
        share = samples * 3 / 10
        unit: int = 10 ** (len(str(int(share))) - 1)
        count = min(_MOST, max(1, round(share / unit) * unit))
    else:
        count = validation_samples
    if not 0 < count < samples:
        raise OptionError(
            f"`validation_samples` must lie in 1 to {samples - 1}, as `test` has {samples} rows, got {count}."
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed), device="cpu")
    return IdSplit(validation=order[:count].sort().values, rest=order[count:].sort().values)


def require_seed(seed: int) -> None:
    """Raise if a number is no seed of 63 bits.

    Raises:
        OptionError: If so.

    Example:
        >>> require_seed(7)

    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _END:
        digits = len(hex(seed)) if isinstance(seed, int) else 0
        shown = repr(seed) if digits < 40 else f"a number of {digits} hexadecimal digits"
        raise OptionError(f"`seed` must lie in 0 to 2^63 - 1, got {shown}.")


def _checked(path: Path, head: LinearHead) -> FeatureSet:
    found = read_features(path)
    width = head.weight.shape[1]
    if found.features.shape[1] != width:
        raise DataFileError(
            f"{path}: `features` must have {width} columns to fit the head, got {found.features.shape[1]}.",
        )
    if len(found.features) == 0:
        raise DataFileError(f"{path}: `features` has no rows: at least one sample is needed.")
    try:
        require_finite(found.features, name="features")
    except NonFiniteError as error:
        raise DataFileError(f"{path}: {error}") from error
    return found


def _labelled(path: Path, found: FeatureSet, head: LinearHead) -> FeatureSet:
    """Return an ID set with int64 labels, if it has any and they are classes of the head; -1 stands for none."""
    if found.labels is None or bool((found.labels == NO_LABEL).all()):
        return FeatureSet(features=found.features, labels=None)
    classes, labels = len(head.weight), found.labels.to(torch.int64)
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise DataFileError(
            f"{path}: `labels` must lie in 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}.",
        )
    return FeatureSet(features=found.features, labels=labels)

"""Folders of cached features: ``head``, ``train``, ``test`` and ``ood_*`` as safetensors files, one folder a model."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from opnp.bench.bench_record import DataSource
from opnp.bench.odin_file import OdinScores, read_odin
from opnp.core.checks import require_finite
from opnp.data import FeatureSet, LinearHead, file_digest, read_features, read_head
from opnp.errors import DataFileError, MissingFileError, NonFiniteError

__all__ = ["ModelData", "feature_folders", "read_feature_folder"]

_LAYOUT = "head.safetensors, train.safetensors, test.safetensors and ood_*.safetensors"


@dataclass(frozen=True, eq=False, slots=True)
class ModelData:
    """What is known of one model.

    Attributes:
        name: Name of the model: its folder's.
        head: The classifier's last layer.
        train: Features of training data, with labels if there are any.
        test: Features of held-out ID data, with labels if there are any.
        ood: Features of OOD sets by name, which is the file's without ``ood_``.
        sources: Files by name: ``head``, ``train``, ``test`` and ``ood_*``.
        odin: ODIN's scores, if they were stored beside the features.

    """

    name: str
    head: LinearHead
    train: FeatureSet
    test: FeatureSet
    ood: dict[str, Tensor]
    sources: dict[str, DataSource]
    odin: OdinScores | None = None

    @property
    def classes(self) -> int:
        """Rows of the head."""
        return len(self.head.weight)

    @property
    def features(self) -> int:
        """Columns of the head."""
        return self.head.weight.shape[1]


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


def read_feature_folder(path: str | os.PathLike[str], *, ood: Iterable[str] | None = None) -> ModelData:
    """Return what a folder holds, checked: widths agree with the head, values are finite, labels are class indices.

    Args:
        path: The folder.
        ood: Names of the OOD sets to read; None for all there are.

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
    files = {file.stem: file for file in (path / "train.safetensors", path / "test.safetensors", *out_of_distribution)}
    sets = {stem: _checked(file, head) for stem, file in files.items()}
    samples = {"head": len(head.weight)} | {stem: len(found.features) for stem, found in sets.items()}
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
    )


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
    """Return an ID set with int64 labels, if it has any and they are classes of the head."""
    if found.labels is None:
        return found
    classes, labels = len(head.weight), found.labels.to(torch.int64)
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise DataFileError(
            f"{path}: `labels` must lie in 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}.",
        )
    return FeatureSet(features=found.features, labels=labels)

"""Cached features and heads on disk: safetensors files with `features` and `labels`, or `weight` and `bias`."""

import os
from dataclasses import dataclass

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from opnp.core.checks import checked_matrix
from opnp.errors import DataFileError, OpnpError, ShapeError
from opnp.files import existing_file, write_atomically

__all__ = ["FeatureSet", "LinearHead", "read_features", "read_head", "write_features", "write_head"]


@dataclass(frozen=True, eq=False, slots=True)
class FeatureSet:
    """Features of a data set, with labels where there are any.

    Attributes:
        features: Shape ``(batch, features)``, any floating dtype.
        labels: Class indices, shape ``(batch,)``, any integer dtype, or None.

    """

    features: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class LinearHead:
    """Weight and bias of a classifier's last layer.

    Attributes:
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``, or None.

    """

    weight: Tensor
    bias: Tensor | None


def read_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Return the features, and labels if any, of a safetensors file with the tensors `features` and `labels`.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or lacks `features`, or a tensor has the wrong shape or dtype.

    """
    tensors = _read(path, needed=("features",), optional=("labels",), what="cached features")
    try:
        features = checked_matrix(tensors["features"], name="features", axes="(batch, features)")
        labels = tensors.get("labels")
        if labels is not None and (labels.shape != features.shape[:1] or labels.is_floating_point()):
            raise ShapeError(
                f"`labels` must be integers of shape {tuple(features.shape[:1])}, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}.",
            )
    except OpnpError as error:
        raise DataFileError(f"{path}: {error}") from error
    return FeatureSet(features=features, labels=labels)


def read_head(path: str | os.PathLike[str]) -> LinearHead:
    """Return the head of a safetensors file with the tensors `weight` and, unless the head has none, `bias`.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or lacks `weight`, or a tensor has the wrong shape or dtype.

    """
    tensors = _read(path, needed=("weight",), optional=("bias",), what="a classifier's head")
    try:
        weight = checked_matrix(tensors["weight"], name="weight", axes="(classes, features)")
        bias = tensors.get("bias")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"`bias` must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
    except OpnpError as error:
        raise DataFileError(f"{path}: {error}") from error
    return LinearHead(weight=weight, bias=bias)


def write_features(path: str | os.PathLike[str], features: Tensor, *, labels: Tensor | None = None) -> None:
    """Write features, and labels if any, in the layout that `read_features` reads.

    Raises:
        ShapeError: If `features` is no matrix.

    """
    checked_matrix(features, name="features", axes="(batch, features)")
    tensors = {"features": features} if labels is None else {"features": features, "labels": labels}
    _write(path, tensors)


def write_head(path: str | os.PathLike[str], weight: Tensor, *, bias: Tensor | None = None) -> None:
    """Write weight and bias in the layout that `read_head` reads.

    Raises:
        ShapeError: If `weight` is no matrix.

    """
    checked_matrix(weight, name="weight", axes="(classes, features)")
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    _write(path, tensors)


def _read(
    path: str | os.PathLike[str], *, needed: tuple[str, ...], optional: tuple[str, ...], what: str
) -> dict[str, Tensor]:
    path = existing_file(path, content=what)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            missing = [name for name in needed if name not in names]
            if missing:
                held = ", ".join(sorted(names)) or "nothing"
                raise DataFileError(f"{path} must hold the tensor `{missing[0]}` ({what}), but it holds {held}.")
            return {name: file.get_tensor(name) for name in (*needed, *optional) if name in names}
    except (SafetensorError, OSError) as error:
        raise DataFileError(f"{path} is no readable safetensors file ({error}).") from error


def _write(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))

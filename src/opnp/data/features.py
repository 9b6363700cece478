"""Cached features and heads on disk: safetensors files with `features` and `labels`, or `weight` and `bias`."""

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from opnp.core.checks import checked_matrix
from opnp.data.mapped import mapped_tensors, stored_matrix, tensors_of
from opnp.errors import DataFileError, OpnpError, ShapeError
from opnp.files import write_atomically

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
    features, labels = mapped_tensors(Path(path))
    return FeatureSet(features=features, labels=labels)


def read_head(path: str | os.PathLike[str]) -> LinearHead:
    """Return the head of a safetensors file with the tensors `weight` and, unless the head has none, `bias`.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or lacks `weight`, or a tensor has the wrong shape or dtype.

    """
    tensors = tensors_of(Path(path), needed="weight", optional="bias", content="a classifier's head")
    try:
        weight = stored_matrix(tensors["weight"], name="weight", axes="(classes, features)").clone()
        bias = tensors.get("bias")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"`bias` must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
        bias = None if bias is None else stored_matrix(bias[:, None], name="bias", axes="(classes, 1)")[:, 0].clone()
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


def _write(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))

"""Tensors on disk: features and heads, written, read as a whole or a range at a time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors.torch import save
from torch import Tensor

from opnp.artifact import opened_tensors
from opnp.core.checks import Array, as_tensor, checked_matrix, require_bias_shape, two_class_head
from opnp.core.labels import LABEL_NAMES
from opnp.data.samples import file_digest, label_column, label_indices
from opnp.data.shards import ShardIndex
from opnp.data.tables import TABLE_ENDINGS, FeatureTable, read_feature_table
from opnp.errors import DataFileError, InputTypeError, OpnpError, OptionError, ShapeError
from opnp.files import existing_file, write_atomically

__all__ = [
    "FeaturePart",
    "FeatureSet",
    "FeatureSource",
    "LinearHead",
    "MappedFeatures",
    "block_edges",
    "feature_names_of",
    "feature_part",
    "open_features",
    "read_features",
    "read_head",
    "write_features",
    "write_head",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@runtime_checkable
class FeatureSource(Protocol):
    """Rows of features, with labels or without, that are read a range at a time and never held as a whole."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Number of features of a row."""

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""

    @property
    def first_row(self) -> int:
        """Number of the first row in the data that this is a part of: 0 for a whole."""

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` (not included), shape ``(rows, features)``, and their labels or None."""

    def digest(self) -> str:
        """Return a text that another content would not have; asked for only where a checkpoint is kept.

        Which columns of a table are read is not in it: `feature_names_of` tells that.
        """


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """Rows `start` to `stop` (not included) of another source, itself a source.

    Attributes:
        whole: The other source.
        start: First row.
        stop: Row after the last.

    """

    whole: FeatureSource
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return self.whole.width

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""
        return self.whole.is_labelled

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features, or None where they have none."""
        return feature_names_of(self.whole)

    @property
    def first_row(self) -> int:
        """Number of the first row in the data that this is a part of."""
        return self.whole.first_row + self.start

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` of this part."""
        return self.whole.read(self.start + start, self.start + stop)

    def digest(self) -> str:
        """Return the digest of the whole: the range is not in it."""
        return self.whole.digest()


def feature_names_of(features: object) -> tuple[str, ...] | None:
    """Return the names of features: `feature_names` of a source, `columns` of a data frame; None where there are none.

    Example:
        >>> feature_names_of(torch.rand(3, 2)) is None
        True

    """
    names = getattr(features, "feature_names", getattr(features, "columns", None))
    return tuple(names) if names is not None and all(isinstance(name, str) for name in names) else None


def feature_part(source: FeatureSource, start: int, stop: int) -> FeaturePart:
    """Return rows `start` to `stop` (not included) of a source.

    Raises:
        OptionError: If there are no such rows.

    """
    if not 0 <= start <= stop <= source.rows:
        raise OptionError(f"A part must lie in rows 0 to {source.rows}, got {start} to {stop}.")
    return FeaturePart(source, start, stop)


def block_edges(rows: int, *, size: int, first_row: int = 0) -> list[tuple[int, int]]:
    """Return (start, stop) of the blocks that rows are read in, cut where the whole data would be cut.

    A part that begins in the middle of a block of the whole begins with the rest of that block, so that all other
    blocks are those that one pass over the whole would have.

    Args:
        rows: Number of rows.
        size: Rows of a block, at most.
        first_row: Number of the first row in the whole data.

    Returns:
        Pairs that cover 0 to `rows` in order.

    Raises:
        OptionError: If `size` is no positive integer.

    Example:
        >>> block_edges(10, size=4), block_edges(10, size=4, first_row=7)
        ([(0, 4), (4, 8), (8, 10)], [(0, 1), (1, 5), (5, 9), (9, 10)])

    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"`batch_size` must be a positive number of rows, got {size!r}.")
    cuts = [0, *range(size - first_row % size, rows, size), rows]
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop]


@dataclass(frozen=True, eq=False, slots=True)
class FeatureSet:
    """Features of a data set, with labels where there are any.

    Attributes:
        features: Shape ``(batch, features)``, any floating dtype.
        labels: Class indices, shape ``(batch,)``, any integer dtype, or None.
        feature_names: Names of the features, of a table; else None.

    """

    features: Tensor
    labels: Tensor | None
    feature_names: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class LinearHead:
    """Weight and bias of a classifier's last layer.

    Attributes:
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``, or None.

    """

    weight: Tensor
    bias: Tensor | None


def read_features(path: str | os.PathLike[str], *, feature_names: Sequence[str] | None = None) -> FeatureSet:
    """Return the features, and labels if any, of a safetensors file with the tensors `features` and `labels`.

    Of a table, ``.csv`` or ``.parquet``, the columns of numbers are the features: see `read_feature_table`.

    Args:
        path: The file.
        feature_names: Of a table, the columns to take in this order, as ``detector.feature_names`` tells; None for all.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, lacks `features` or a column, or a tensor has the wrong shape or dtype.

    Warns:
        ColumnWarning: If columns of a table are left out.

    """
    path = Path(path)
    if _is_table(path):
        return FeatureSet(*read_feature_table(path, feature_names=feature_names))
    return FeatureSet(*_mapped_tensors(path))


def read_head(path: str | os.PathLike[str]) -> LinearHead:
    """Return the head of a safetensors file with the tensors `weight` and, unless the head has none, `bias`.

    A head of one logit z becomes that of the two classes with the logits -z/2 and z/2.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or lacks `weight`, or a tensor has the wrong shape or dtype.

    """
    tensors = _tensors_of(Path(path), needed="weight", optional=("bias",), content="a classifier's head")
    try:
        weight = _stored_matrix(tensors["weight"], name="weight", axes="(classes, features)").clone()
        bias = tensors.get("bias")
        if bias is not None:
            require_bias_shape(weight, bias)
        bias = None if bias is None else _stored_matrix(bias[:, None], name="bias", axes="(classes, 1)")[:, 0].clone()
    except OpnpError as error:
        raise DataFileError(f"{path}: {error}") from error
    return LinearHead(*two_class_head(weight, bias))


def write_features(path: str | os.PathLike[str], features: Array, *, labels: Array | None = None) -> None:
    """Write features, and labels if any, tensors or NumPy arrays, in the layout that `read_features` reads.

    Raises:
        ShapeError: If `features` is no matrix.

    """
    rows = checked_matrix(as_tensor(features), name="features", axes="(batch, features)")
    _write(path, features=rows, labels=None if labels is None else as_tensor(labels))


def write_head(path: str | os.PathLike[str], weight: Array, *, bias: Array | None = None) -> None:
    """Write weight and bias, tensors or NumPy arrays, in the layout that `read_head` reads.

    The head of a linear classifier of scikit-learn is ``write_head(path, model.coef_, bias=model.intercept_)``, of two
    classes as well; its classes are numbered as in ``model.classes_``.

    Raises:
        ShapeError: If `weight` is no matrix, or there is not one bias a class.

    """
    rows = checked_matrix(as_tensor(weight), name="weight", axes="(classes, features)")
    shift = None if bias is None else as_tensor(bias)
    if shift is not None:
        require_bias_shape(rows, shift)
    _write(path, weight=rows, bias=shift)


def _write(path: str | os.PathLike[str], **tensors: Tensor | None) -> None:
    there = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    write_atomically(path, save(there))


class MappedFeatures:
    """Features in one safetensors file or in a folder of shards, read a range at a time.

    One file is mapped at a time. What `read` returns are views of its pages, which the system loads and drops as it
    likes; only a range that crosses the end of a file is copied. The files must not change meanwhile.

    Args:
        paths: The files, in the order of their rows.
        lengths: Rows of each.
        digest: What computes the digest.
        expected: Digest of each file, for `verify`; empty where there is none.
        held: Features, labels and names of the only file, if it is a table; else None.

    Attributes:
        rows: Number of rows.
        width: Number of features of a row.
        dtype: Dtype of the features.
        is_labelled: Whether there is a label for each row.
        feature_names: Names of the features, of a table; else None.
        first_row: Number of the first row: 0.

    Raises:
        DataFileError: If a file is unreadable, or does not hold what it must.

    """

    def __init__(
        self,
        paths: list[Path],
        lengths: list[int],
        *,
        digest: Callable[[], str],
        expected: tuple[str, ...] = (),
        held: FeatureTable | None = None,
    ) -> None:
        """Map the first file for its layout."""
        self._paths = paths
        self._digest, self._expected, self._held = digest, expected, None if held is None else held[:2]
        self.feature_names = None if held is None else held.feature_names
        self._mapped: tuple[int, Tensor, Tensor | None] | None = None
        self._edges = list(pairwise(accumulate(lengths, initial=0)))
        features, labels = self._held or _mapped_tensors(paths[0])
        self.rows, self.width, self.first_row = sum(lengths), features.shape[1], 0
        self.dtype, self.is_labelled = features.dtype, labels is not None

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` (not included), shape ``(rows, features)``, and their labels or None.

        Raises:
            OptionError: If there are no such rows.
            DataFileError: If a file is unreadable, or does not hold what it must.

        """
        if not 0 <= start <= stop <= self.rows:
            raise OptionError(f"Rows must lie in 0 to {self.rows}, got {start} to {stop}.")
        touched = [index for index, (first, last) in enumerate(self._edges) if first < stop and start < last]
        parts = [self._range(index, start, stop) for index in touched or [0]]
        if len(parts) == 1:
            return parts[0]
        labels = [targets for _, targets in parts if targets is not None]
        return torch.cat([features for features, _ in parts]), torch.cat(labels) if labels else None

    def digest(self) -> str:
        """Return the SHA-256 of the content: of one file its bytes, of shards their index, which holds their digests.

        Shards that were changed in place after they were written are found by `verify`, which reads them.
        """
        return self._digest()

    def verify(self) -> None:
        """Read every shard and compare it with the digest that its index holds; do nothing for a single file.

        Raises:
            DataFileError: If one differs.

        """
        for path, expected in zip(self._paths, self._expected, strict=False):
            if file_digest(path) != expected:
                raise DataFileError(f"{path} is damaged: its content does not match the SHA-256 in its index.")

    def close(self) -> None:
        """Let go of the file that is mapped; the next `read` maps one again."""
        self._mapped = None

    def _range(self, index: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return the rows of a file that lie in a range of the whole; map the file if it is not the one before."""
        first, last = self._edges[index]
        if self._mapped is None or self._mapped[0] != index:
            self._mapped = None  # first, so that no two files are mapped at once
            features, labels = self._held or _mapped_tensors(self._paths[index])
            found = (len(features), features.shape[1], features.dtype, labels is not None)
            if found != (last - first, self.width, self.dtype, self.is_labelled):
                raise DataFileError(
                    f"{self._paths[index]} holds {found[0]} rows of {found[1]} features in {found[2]}, "
                    f"{'with' if found[3] else 'without'} labels, which is not what its index says. Write the folder "
                    f"again."
                )
            self._mapped = index, features, labels
        _, features, labels = self._mapped
        rows = slice(max(start, first) - first, max(0, min(stop, last) - first))
        return features[rows], None if labels is None else labels[rows]


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLE_ENDINGS and not path.is_dir()


def open_features(path: str | os.PathLike[str], *, feature_names: Sequence[str] | None = None) -> MappedFeatures:
    """Return the cached features of a safetensors file or a folder that `FeatureShardWriter` wrote, unread; or a table.

    Args:
        path: A file with the tensor `features` and perhaps `labels`; a folder of such files with an index; or a file
            ending in ``.csv`` or ``.parquet``, of which the columns of numbers are the features and `label` or `labels`
            the class indices.
        feature_names: Of a table, the columns to take in this order, as ``detector.feature_names`` tells; None for all.

    Returns:
        A `FeatureSource`.

    Raises:
        MissingFileError: If there is no such file, or the folder has no index or lacks a shard.
        DataFileError: If it is unreadable, or a tensor or column is missing or has the wrong shape or dtype.

    Warns:
        ColumnWarning: If columns of a table are left out.

    """
    path = Path(path)
    if path.is_dir():
        index = ShardIndex.read(path)
        source = MappedFeatures(
            [path / shard.file for shard in index.shards],
            [shard.rows for shard in index.shards],
            digest=index.digest,
            expected=tuple(shard.sha256 for shard in index.shards),
        )
        described = (index.width, f"torch.{index.dtype}", index.is_labelled)
        if (source.width, str(source.dtype), source.is_labelled) != described:
            raise DataFileError(f"{path}: the shards are not those that the index describes. Write the folder again.")
        return source
    if _is_table(path):
        found = read_feature_table(path, feature_names=feature_names)
        return MappedFeatures([path], [len(found.features)], digest=lambda: file_digest(path), held=found)
    features, _ = _mapped_tensors(path)
    return MappedFeatures([path], [len(features)], digest=lambda: file_digest(path))


def _mapped_tensors(path: Path) -> tuple[Tensor, Tensor | None]:
    """Return features and labels of one file as views of its mapped pages, checked for shape and dtype."""
    tensors = _tensors_of(path, needed="features", optional=LABEL_NAMES, content="cached features")
    features, name = tensors["features"], label_column(path, tensors)
    try:
        _stored_matrix(features, name="features", axes="(batch, features)")
    except OpnpError as error:
        raise DataFileError(f"{path}: {error}") from error
    if name is None:
        return features, None
    labels = tensors[name]
    if labels.ndim != 1 or labels.dtype not in _INTEGERS:  # others stay views
        labels = label_indices(labels, path=path)
    if labels.shape != features.shape[:1]:
        raise DataFileError(
            f"{path}: `{name}` must be integers of shape {tuple(features.shape[:1])}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}.",
        )
    return features, labels


def _stored_matrix(tensor: Tensor, *, name: str, axes: str) -> Tensor:
    """Return a matrix out of a file if it has columns, and a dtype that can be computed with.

    Raises:
        InputTypeError: If its dtype is not float16, bfloat16, float32 or float64.
        ShapeError: If it has not two axes, or no columns.

    """
    checked_matrix(tensor, name=name, axes=axes)
    if tensor.dtype not in _FLOATS:
        raise InputTypeError(f"`{name}` must be float16, bfloat16, float32 or float64, got {tensor.dtype}.")
    if tensor.shape[1] == 0:
        raise ShapeError(f"`{name}` must have shape {axes} with at least one column, got {tuple(tensor.shape)}.")
    return tensor


def _tensors_of(path: Path, *, needed: str, optional: tuple[str, ...], content: str) -> dict[str, Tensor]:
    """Return some tensors of a safetensors file by name, as views of its mapped pages.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it is unreadable, or lacks `needed`.

    """
    path = existing_file(path, content=content)
    try:
        found = opened_tensors(path, wanted=(needed, *optional))
    except ValueError as error:
        raise DataFileError(f"{path} is no readable safetensors file ({error}).") from error
    if needed not in found.names:
        held = ", ".join(sorted(found.names)) or "nothing"
        raise DataFileError(f"{path} must hold the tensor `{needed}` ({content}), but it holds {held}.")
    return dict(found.tensors)

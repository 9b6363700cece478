"""Cached features as blocks of rows, checked as they pass: whole in memory, or read from a source bit by bit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.core.checks import checked_matrix, require_class_indices, require_finite
from opnp.data import FeatureSource, block_edges
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, OptionError, ShapeError

__all__ = ["BLOCK_ROWS", "FeatureBlocks", "TensorFeatures", "feature_blocks", "width_message"]

BLOCK_ROWS = 8192
"""Rows of a block where nothing else is asked for."""


@dataclass(frozen=True, eq=False, slots=True)
class TensorFeatures:
    """A feature matrix in memory as a `FeatureSource`.

    Attributes:
        features: Shape ``(batch, features)``.
        labels: Class indices, shape ``(batch,)``, or None.
        name: Name of the argument, for messages.

    Raises:
        InputTypeError: If `features` is no floating-point tensor, or labels are no integers.
        ShapeError: If it is no matrix, or there is not one label for each sample.

    """

    features: Tensor
    labels: Tensor | None = None
    name: str = "features"

    def __post_init__(self) -> None:
        """Check type and shape."""
        checked_matrix(self.features, name=self.name, axes="(batch, features)")
        _require_labels(self.labels, samples=len(self.features))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.features)

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return self.features.shape[1]

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""
        return self.labels is not None

    @property
    def first_row(self) -> int:
        """Number of the first row: 0."""
        return 0

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop`, and their labels."""
        return self.features[start:stop].detach(), None if self.labels is None else self.labels[start:stop]

    def digest(self) -> str:
        """Return the SHA-256 of features and labels."""
        return tensors_digest({"features": self.features, "labels": self.labels})


@dataclass(frozen=True, eq=False, slots=True)
class FeatureBlocks:
    """The rows of a source as blocks on the device of a head, with their labels, checked as they pass.

    Attributes:
        source: Where the rows come from.
        weight: The head's weight, shape ``(classes, features)``.
        name: Name of the argument, for messages.
        size: Rows of a block, at most.
        done: Number of blocks to leave out at the beginning.

    Raises:
        NonFiniteError: While iterating, if a block holds NaN or infinite values.
        OptionError: While iterating, if a label is no class index of the head.
        DataFileError: While iterating, if the source gives other rows than it was asked for.

    """

    source: FeatureSource
    weight: Tensor
    name: str = "features"
    size: int = BLOCK_ROWS
    done: int = 0

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._edges())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield pairs of shapes ``(rows, features)`` and ``(rows,)``, the second None without labels."""
        for start, stop in self._edges():
            rows, labels = self.source.read(start, stop)
            self._require_sound(rows, labels, start, stop)
            yield rows.to(self.weight.device), labels

    def features(self) -> Iterator[Tensor]:
        """Yield the blocks without labels."""
        return (rows for rows, _ in self)

    def after(self, done: int) -> "FeatureBlocks":
        """Return these blocks without the first `done` of them."""
        return replace(self, done=done)

    def _edges(self) -> list[tuple[int, int]]:
        return block_edges(self.source.rows, size=self.size, first_row=self.source.first_row)[self.done :]

    def _require_sound(self, rows: Tensor, labels: Tensor | None, start: int, stop: int) -> None:
        if rows.shape != (stop - start, self.weight.shape[1]) or not rows.is_floating_point():
            raise DataFileError(
                f"`{self.name}` must give floating-point features of shape {(stop - start, self.weight.shape[1])} for "
                f"rows {start} to {stop}, got {rows.dtype} of shape {tuple(rows.shape)}."
            )
        require_finite(rows, name=self.name, first_row=self.source.first_row + start)
        if labels is not None:
            _require_labels(labels, samples=len(rows))
            require_class_indices(labels, classes=len(self.weight))


def feature_blocks(
    features: Tensor | FeatureSource,
    weight: Tensor,
    *,
    labels: Tensor | None = None,
    name: str = "features",
    size: int = BLOCK_ROWS,
    is_part: bool = False,
) -> FeatureBlocks:
    """Return features in memory or in a source as blocks for a head.

    Args:
        features: A matrix of shape ``(batch, features)``, or a source.
        weight: The head's weight, shape ``(classes, features)``.
        labels: Class indices, shape ``(batch,)``, or None; a source has its own.
        name: Name of the argument, for messages.
        size: Rows of a block, at most.
        is_part: Whether there may be no rows, as a rank among others may have none.

    Raises:
        EmptyDataError: If there are no rows.
        ShapeError: If the width is not the head's, or there is not one label for each sample.
        InputTypeError: If `features` is neither a floating-point tensor nor a source.
        OptionError: If a label is no class index of the head, or a source was given other labels.

    """
    if isinstance(features, Tensor) or not isinstance(features, FeatureSource):
        checked_matrix(features, name=name, axes="(batch, features)")
        if features.shape[1:] != weight.shape[1:]:
            raise ShapeError(width_message(tuple(features.shape), weight, name=name))
        source: FeatureSource = TensorFeatures(features, labels, name)
        if labels is not None:
            require_class_indices(labels, classes=len(weight))
    else:
        if labels is not None:
            raise OptionError(f"`labels` belong to features in memory: the source that `{name}` is has its own.")
        if features.width != weight.shape[1]:
            raise ShapeError(width_message((features.rows, features.width), weight, name=name))
        source = features
    if source.rows == 0 and not is_part:
        raise EmptyDataError(f"`{name}` has no rows: at least one sample is needed.")
    block_edges(0, size=size)
    return FeatureBlocks(source, weight, name=name, size=size)


def width_message(shape: tuple[int, ...], weight: Tensor, *, name: str = "features") -> str:
    """Return what to say of features whose width is not that of the head."""
    return (
        f"`{name}` must have {weight.shape[1]} columns, one for each input of the head, got shape {shape}. Take them "
        f"where the head takes its input."
    )


def _require_labels(labels: Tensor | None, *, samples: int) -> None:
    """Raise if labels, where given, are not one integer a sample."""
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"`labels` must be a torch.Tensor of class indices, got {type(labels).__name__}.")
    if labels.shape != (samples,):
        raise ShapeError(f"`labels` must have shape ({samples},), one a sample, got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"`labels` must be integer class indices, got {labels.dtype}.")

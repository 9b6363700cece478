"""Cached features as blocks of rows, checked as they pass: whole in memory, or read from a source bit by bit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.core.checks import checked_matrix, require_class_indices, require_finite
from opnp.data import FeatureSource, block_edges
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, ShapeError

__all__ = ["BLOCK_ROWS", "FeatureBlocks", "TensorFeatures", "feature_blocks", "width_message"]

BLOCK_ROWS = 8192
"""Rows of a block where nothing else is asked for."""


@dataclass(frozen=True, eq=False, slots=True)
class TensorFeatures:
    """A feature matrix in memory, shape ``(batch, features)``, as a `FeatureSource` without labels."""

    features: Tensor
    is_labelled = False
    first_row = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.features)

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return self.features.shape[1]

    def read(self, start: int, stop: int) -> tuple[Tensor, None]:
        """Return rows `start` to `stop`, and no labels."""
        return self.features[start:stop].detach(), None

    def digest(self) -> str:
        """Return the SHA-256 of the features."""
        return tensors_digest({"features": self.features, "labels": None})


@dataclass(frozen=True, eq=False, slots=True)
class FeatureBlocks:
    """The rows of a source as blocks on the device of a head, checked as they pass, with the labels that it has.

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

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks, shape ``(rows, features)``."""
        for start, stop in self._edges():
            rows, labels = self.source.read(start, stop)
            self._require_sound(rows, labels, start, stop)
            yield rows.to(self.weight.device)

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
        if labels is None:
            return
        if not isinstance(labels, Tensor):
            raise InputTypeError(f"`labels` must be a torch.Tensor of class indices, got {type(labels).__name__}.")
        if labels.shape != (len(rows),):
            raise ShapeError(f"`labels` must have shape ({len(rows)},), one a sample, got {tuple(labels.shape)}.")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputTypeError(f"`labels` must be integer class indices, got {labels.dtype}.")
        require_class_indices(labels, classes=len(self.weight))


def feature_blocks(
    features: Tensor | FeatureSource,
    weight: Tensor,
    *,
    name: str = "features",
    size: int = BLOCK_ROWS,
    is_part: bool = False,
) -> FeatureBlocks:
    """Return features in memory or in a source as blocks for a head.

    Args:
        features: A matrix of shape ``(batch, features)``, or a source.
        weight: The head's weight, shape ``(classes, features)``.
        name: Name of the argument, for messages.
        size: Rows of a block, at most.
        is_part: Whether there may be no rows, as a rank among others may have none.

    Raises:
        EmptyDataError: If there are no rows.
        ShapeError: If the width is not the head's.
        InputTypeError: If `features` is neither a floating-point tensor nor a source.

    """
    if isinstance(features, Tensor) or not isinstance(features, FeatureSource):
        source: FeatureSource = TensorFeatures(checked_matrix(features, name=name, axes="(batch, features)"))
    else:
        source = features
    if source.width != weight.shape[1]:
        raise ShapeError(width_message((source.rows, source.width), weight, name=name))
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

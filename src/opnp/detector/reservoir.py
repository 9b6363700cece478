"""A uniform random sample of bounded size from a stream, taken in one pass."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

__all__ = ["Reservoir"]

_SKIPPED_AT_ONCE = 1 << 20


class Reservoir:
    """Keeps at most `size` rows of those it was shown, each set of rows being equally likely.

    Every row gets a random key, and the rows with the smallest keys stay. The same rows in the same order give the
    same sample.

    Args:
        size: Number of rows to keep.
        seed: Seed of the keys.

    Example:
        >>> import torch
        >>> reservoir = Reservoir(size=2, seed=0)
        >>> reservoir.show(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))
        >>> features, labels = reservoir.sample()
        >>> features.shape, len(labels)
        (torch.Size([2, 2]), 2)

    """

    def __init__(self, *, size: int, seed: int) -> None:
        """Store the size, and start empty."""
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)
        self._features: Tensor | None = None
        self._labels: Tensor | None = None
        self._is_labelled = True

    def show(self, features: Tensor, labels: Tensor | None) -> None:
        """Take rows of features, shape ``(batch, features)``, with their labels, shape ``(batch,)``, where known."""
        self._is_labelled = self._is_labelled and labels is not None
        keys = torch.rand(len(features), generator=self._generator, dtype=torch.float64)
        limit = self._keys.max() if len(self._keys) == self._size else 1.0
        rows = (keys < limit).nonzero().flatten()
        self._keys = torch.cat([self._keys, keys[rows]])
        self._features = _joined(self._features, features[rows.to(features.device)])
        if labels is None or not self._is_labelled:
            self._labels = None
        else:
            self._labels = _joined(self._labels, labels[rows.to(labels.device)].long())
        if len(self._keys) > self._size:
            kept = self._keys.argsort()[: self._size].sort().values
            self._keys, self._features = self._keys[kept], self._features[kept.to(self._features.device)]
            if self._labels is not None:
                self._labels = self._labels[kept.to(self._labels.device)]

    def skip(self, rows: int) -> None:
        """Pass over rows that another reservoir of the same seed is shown, so that both together are as one."""
        for start in range(0, rows, _SKIPPED_AT_ONCE):
            torch.rand(min(_SKIPPED_AT_ONCE, rows - start), generator=self._generator, dtype=torch.float64)

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, Tensor]], *, size: int) -> Self:
        """Return a reservoir that holds what one shown the rows of all parts, in their order, would hold.

        Args:
            parts: What `to_tensors` of several reservoirs of `size` gave, whose keys were their own: another seed, or
                the right number of rows skipped.
            size: Number of rows to keep.

        Returns:
            A reservoir to sample from; there is no more to show it.

        """
        whole = cls(size=size, seed=0).to_tensors()
        shown = [part for part in parts if len(part["keys"])]
        if not shown:
            return cls.from_tensors(whole, size=size)
        keys = torch.cat([part["keys"] for part in shown])
        kept = keys.argsort()[:size].sort().values
        rows = torch.cat([part["features"] for part in shown])
        whole |= {"keys": keys[kept], "features": rows[kept.to(rows.device)]}
        is_labelled = all(bool(part["is_labelled"]) for part in shown)
        if is_labelled:
            labels = torch.cat([part["labels"] for part in shown])
            whole["labels"] = labels[kept.to(labels.device)]
        return cls.from_tensors(whole | {"is_labelled": torch.tensor([is_labelled])}, size=size)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all that it holds, the state of its generator included, as tensors by name, for `from_tensors`."""
        tensors = {
            "keys": self._keys,
            "generator": self._generator.get_state(),
            "is_labelled": torch.tensor([self._is_labelled]),
        }
        if self._features is not None:
            tensors["features"] = self._features
        if self._labels is not None:
            tensors["labels"] = self._labels
        return tensors

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        size: int,
        width: int | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """Return the reservoir that `to_tensors` gave, with its rows on a device: the next key is the same.

        Args:
            tensors: What `to_tensors` gave.
            size: Number of rows to keep.
            width: Number of features that its rows must have; None for any.
            device: Where its rows go; None to leave them where they are.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If they do not fit together.
            RuntimeError: If there is no generator of this state.
            TypeError: If its state is no tensor of bytes.

        """
        reservoir = cls(size=size, seed=0)
        reservoir._generator.set_state(tensors["generator"])
        keys, rows, labels = tensors["keys"], tensors.get("features"), tensors.get("labels")
        is_fitting = keys.ndim == 1 and keys.dtype == torch.float64 and len(keys) <= size
        if rows is None:
            is_fitting &= keys.numel() == 0
        else:
            is_fitting &= rows.ndim == 2 and len(rows) == len(keys) and rows.is_floating_point()
            is_fitting &= width is None or rows.shape[-1:] == (width,)
        if labels is not None:
            is_fitting &= labels.shape == keys.shape and labels.dtype == torch.int64
        if is_fitting and len(keys):
            is_fitting = (labels is not None) == bool(tensors["is_labelled"].all())
        if not is_fitting or tensors["is_labelled"].numel() != 1:
            message = "keys, rows and labels do not belong together"
            raise ValueError(message)
        reservoir._keys, reservoir._labels = keys, labels
        reservoir._is_labelled = bool(tensors["is_labelled"])
        reservoir._features = rows if rows is None or device is None else rows.to(device)
        return reservoir

    def sample(self) -> tuple[Tensor, Tensor | None]:
        """Return the features, shape ``(rows, features)``, and labels that stayed; None where any were missing."""
        if self._features is None:
            return torch.empty(0, 0), None
        return self._features, self._labels


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second])

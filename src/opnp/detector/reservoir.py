"""A uniform random sample of bounded size from a stream, taken in one pass."""

import torch
from torch import Tensor

__all__ = ["Reservoir"]


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

    def sample(self) -> tuple[Tensor, Tensor | None]:
        """Return the features, shape ``(rows, features)``, and labels that stayed; None where any were missing."""
        if self._features is None:
            return torch.empty(0, 0), None
        return self._features, self._labels


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second])

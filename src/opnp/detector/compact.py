"""The compact head: the pruned head without the columns of which nothing is left."""

from typing import Self

from torch import Tensor, nn

from opnp.core.masks import Masks
from opnp.errors import ShapeError

__all__ = ["CompactHead"]


class CompactHead(nn.Module):
    """A head that reads some of the features: those at `index`, by the smaller layer `head`.

    It is a module like any other: it moves between devices with its index, and its state holds both.

    Args:
        head: The layer of the features that are read.
        index: Their positions among all features, ascending, shape ``(kept,)``, int64.
        features: How many there are in all.

    Example:
        >>> import torch
        >>> head = CompactHead(nn.Linear(2, 1, bias=False), torch.tensor([0, 2]), features=3)
        >>> _ = nn.init.ones_(head.head.weight)
        >>> head(torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[101.0]]

    """

    index: Tensor

    def __init__(self, head: nn.Linear, index: Tensor, *, features: int) -> None:
        super().__init__()
        self.head = head
        self.features = features
        self.register_buffer("index", index)

    @classmethod
    def from_head(cls, pruned: nn.Linear, masks: Masks) -> Self:
        """Return the compact form of a pruned head, with copies of what it keeps.

        Dropped are the columns of pruned neurons, and those whose weights are all pruned one by one. The bias stays.

        Args:
            pruned: The head in full size, with zeros where it is pruned.
            masks: What was kept of it.

        Returns:
            The head, in dtype and on the device of `pruned`, without gradients.

        Example:
            >>> import torch
            >>> pruned = nn.Linear(3, 2)
            >>> masks = Masks(torch.ones(2, 3, dtype=torch.bool), torch.tensor([True, False, True]))
            >>> compact = CompactHead.from_head(pruned, masks)
            >>> compact.index.tolist(), compact.head
            ([0, 2], Linear(in_features=2, out_features=2, bias=True))

        """
        weight, bias = pruned.weight.detach(), pruned.bias
        index = masks.kept.any(0).nonzero().flatten().to(weight.device)
        head: nn.Linear = nn.utils.skip_init(
            nn.Linear, 1, len(weight), bias=bias is not None
        )  # torch warns of 0 inputs
        head.in_features = len(index)
        head.weight = nn.Parameter(weight[:, index], requires_grad=False)
        if bias is not None:
            head.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return cls(head, index, features=weight.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of full features, shape ``(..., features)``, as shape ``(..., classes)``.

        Raises:
            ShapeError: If there are more or fewer features than the head was made for.

        """
        if features.shape[-1:] != (self.features,):
            raise ShapeError(
                f"`features` must have shape (..., {self.features}), got {tuple(features.shape)}: give all features, "
                f"the head picks its own. Features that are picked already go to `.head`.",
            )
        logits: Tensor = self.head(features.index_select(-1, self.index))
        return logits

    def extra_repr(self) -> str:
        """Return how many features are read."""
        return f"reads {len(self.index)} of {self.features} features"

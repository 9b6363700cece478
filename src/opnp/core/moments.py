r"""Sums over training features from which the members of the fusion follow, as an additive value.

For features h, their directions z = h / |h| and the class c that the head predicts,

    sum of h        sum of h h'        sum of z z'        sum of z for each class        count for each class

are all that fDBD, NCI, ViM and Mahalanobis++ need to know of the training data. They are float64 from products in
float64, so that they agree to 1e-12 however the rows are cut into batches, runs and ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from opnp.errors import ShapeError

__all__ = ["LARGEST_WIDTH", "FeatureMoments"]

LARGEST_WIDTH = 8192
"""Features up to which products of pairs of them are summed: two matrices of half a gigabyte there."""


@dataclass(eq=False, slots=True)
class FeatureMoments:
    """Sums over the samples seen so far: a value that adds up.

    Attributes:
        count: Number of samples summed.
        feature: Sum of h, shape ``(features,)``, float64.
        product: Sum of h h', shape ``(features, features)``, float64; None where that is too wide to hold.
        direction_product: Sum of z z', as `product`.
        class_direction: Sum of z over the samples of each predicted class, shape ``(classes, features)``, float64.
        class_count: Number of samples of each predicted class, shape ``(classes,)``, int64.

    Example:
        >>> import torch
        >>> part = FeatureMoments.zeros(classes=2, features=2)
        >>> part = part.add_(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
        >>> whole = part + part
        >>> whole.feature.tolist(), whole.class_direction.tolist(), whole.class_count.tolist()
        ([6.0, 8.0], [[0.0, 0.0], [1.2, 1.6]], [0, 2])

    """

    count: int
    feature: Tensor
    product: Tensor | None
    direction_product: Tensor | None
    class_direction: Tensor
    class_count: Tensor

    @classmethod
    def zeros(
        cls,
        *,
        classes: int,
        features: int,
        has_product: bool = True,
        has_directions: bool = True,
        device: torch.device | str | None = None,
    ) -> Self:
        """Return the empty sums, the neutral element of ``+``, for a head of the given size.

        Args:
            classes: Rows of the head.
            features: Columns of the head.
            has_product: Whether to sum h h', which ViM needs.
            has_directions: Whether to sum z z', which Mahalanobis++ needs.
            device: Where the sums are.

        """

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        is_held = features <= LARGEST_WIDTH
        return cls(
            count=0,
            feature=empty(features),
            product=empty(features, features) if is_held and has_product else None,
            direction_product=empty(features, features) if is_held and has_directions else None,
            class_direction=empty(classes, features),
            class_count=torch.zeros(classes, dtype=torch.int64, device=device),
        )

    def add_(self, features: Tensor, predicted: Tensor) -> Self:
        """Add further rows in place, and return these sums.

        Args:
            features: Shape ``(batch, features)``, any floating dtype, finite.
            predicted: Class that the head predicts, shape ``(batch,)``, int64.

        """
        h = features.detach().double()
        z = directions(h)
        self.feature.add_(h.sum(0))
        if self.product is not None:
            self.product.addmm_(h.T, h)
        if self.direction_product is not None:
            self.direction_product.addmm_(z.T, z)
        self.class_direction.index_add_(0, predicted, z)
        self.class_count.index_add_(0, predicted, torch.ones_like(predicted))
        self.count += len(h)
        return self

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, each of which adds up by itself; the count is not among them."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "count"}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, count: int) -> Self:
        """Return the sums that `to_tensors` gave, over so many samples.

        Raises:
            KeyError: If a tensor is missing.

        """
        return cls(
            count=count,
            feature=tensors["feature"],
            product=tensors.get("product"),
            direction_product=tensors.get("direction_product"),
            class_direction=tensors["class_direction"],
            class_count=tensors["class_count"],
        )

    def __add__(self, other: object) -> "FeatureMoments":
        """Return the sums over both parts of the data.

        Raises:
            ShapeError: If the parts come from heads of different size.

        """
        if not isinstance(other, FeatureMoments):
            return NotImplemented
        if self.class_direction.shape != other.class_direction.shape:
            raise ShapeError(
                f"Sums of heads of different size cannot be merged: (classes, features) is "
                f"{tuple(self.class_direction.shape)} on the left and {tuple(other.class_direction.shape)} on the "
                f"right.",
            )
        mine, more = self.to_tensors(), other.to_tensors()
        sums = {name: tensor + more[name] for name, tensor in mine.items() if name in more}
        return FeatureMoments.from_tensors(sums, count=self.count + other.count)


def directions(features: Tensor) -> Tensor:
    """Return z = h / |h|, shape and dtype of float32 or float64 `features`; a row of zeros stays one.

    Example:
        >>> import torch
        >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]

    """
    largest = features.abs().amax(1, keepdim=True)
    scaled = features / torch.where(largest > 0, largest, 1.0)  # the squares of the entries as they are could overflow
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)

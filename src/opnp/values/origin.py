"""Which model a detector was fitted on, and how its inputs were made."""

from collections.abc import Mapping
from typing import Literal

from opnp.values.reading import Value

__all__ = ["ModelOrigin"]


class ModelOrigin(Value, frozen=True):
    """The model of a fit by name, as the command line opens it; no path in it is absolute.

    Attributes:
        model: Name of the model, such as ``timm:resnet18``; a folder in it is relative to that of the detector.
        weights: File of weights, relative to the folder of the detector; None for those that come with the model.
        weights_sha256: Digest of the names and values of the model's tensors.
        kind: What the inputs are made of.
        inputs: What makes them, as `Transform.facts` tells.
        class_names: Names of the classes, in the model's order, or None.

    """

    model: str
    weights: str | None
    weights_sha256: str
    kind: Literal["image", "text"]
    inputs: Mapping[str, object]
    class_names: tuple[str, ...] | None = None

"""What turns one sample, an image or a text, into what a model takes: the form that all such have."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["ModelInputs", "SampleKind", "Transform", "channel_std"]

SampleKind = Literal["image", "text"]
"""What a sample is: an image of Pillow, or a text."""

ModelInputs = Tensor | Mapping[str, Tensor]
"""What a model takes: a tensor, or tensors by the names of its arguments."""


@runtime_checkable
class Transform(Protocol):
    """From samples to the inputs of a model.

    A transform of images that divides the channels by standard deviations says so by an attribute `std`, a tuple of one
    number a channel: what works on the inputs themselves, as ODIN does, needs it.
    """

    @property
    def kind(self) -> SampleKind:
        """What it takes."""

    def __call__(self, sample: Any, /) -> ModelInputs:  # noqa: ANN401  # an image of Pillow or a text, as `kind` says
        """Return what the model takes of one sample, without a batch axis.

        Raises:
            DataFileError: If nothing can be made of this sample; its text is the reason alone.

        """

    def batch(self, items: Sequence[Any], /) -> ModelInputs:
        """Return one batch of what calls have returned: stacked, or padded to the longest."""

    def facts(self) -> Mapping[str, object]:
        """Return what the result depends on, as JSON values; it is recorded beside features."""


def channel_std(transform: Transform) -> tuple[float, ...] | None:
    """Return what a transform divides the channels of images by, or None where it does not say.

    Example:
        >>> from opnp.data import Preprocessing
        >>> channel_std(Preprocessing(size=4, resize=4, mean=(0.5,), std=(0.25,)))
        (0.25,)

    """
    std = getattr(transform, "std", None)
    if transform.kind != "image" or std is None:
        return None
    return tuple(float(value) for value in std)

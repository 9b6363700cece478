"""What images and labels that lie in arrays must be."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from opnp.data.class_labels import class_index
from opnp.errors import DataFileError, EmptyDataError

__all__ = ["AnyArray", "checked_labels", "require_pixels"]


AnyArray = NDArray[Any] | Tensor
"""An array of NumPy or a tensor of torch."""


def require_pixels(path: Path, pixels: AnyArray) -> None:
    """Raise if an array cannot be images of 8 bits a channel.

    Raises:
        DataFileError: If it has another dtype or shape, that of a single image in colours too.
        EmptyDataError: If it has no entries.

    Example:
        >>> import numpy as np
        >>> require_pixels(Path("some.npy"), np.zeros((7, 32, 32, 3), dtype=np.uint8))

    """
    shape, dtype = tuple(pixels.shape), str(pixels.dtype)
    is_shaped = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not is_shaped or dtype.removeprefix("torch.") != "uint8":
        raise DataFileError(
            f"{path}: `images` must be uint8 of shape (images, height, width, 3), or (images, height, width) for "
            f"grey ones, got {dtype} of shape {shape}.",
        )
    if 0 in shape:
        raise EmptyDataError(f"{path}: `images` has no pixels, got shape {shape}.")
    if len(shape) == 3 and shape[2] == 3:
        raise DataFileError(
            f"{path}: `images` of shape {shape} is one image in colours, not {shape[0]} grey ones: store "
            f"`images[None]`, of shape {(1, *shape)}.",
        )


def checked_labels(path: Path, labels: AnyArray, *, images: int) -> tuple[int, ...]:
    """Return the labels of so many images.

    Raises:
        DataFileError: If the entries are no integers, not one an image, or need more than 64 bits.

    Example:
        >>> import numpy as np
        >>> checked_labels(Path("some.npz"), np.array([3, 0]), images=2)
        (3, 0)

    """
    shape, dtype = tuple(labels.shape), str(getattr(labels.dtype, "name", labels.dtype))  # in either order of bytes
    if shape != (images,) or not dtype.removeprefix("torch.").startswith(("int", "uint")):
        raise DataFileError(f"{path}: `labels` must be integers of shape ({images},), got {dtype} of shape {shape}.")
    return tuple(class_index(label, path=path) for label in labels.tolist())

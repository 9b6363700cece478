"""What images and labels that lie in arrays must be."""

from collections.abc import Sequence
from pathlib import Path

from opnp.errors import DataFileError, EmptyDataError

__all__ = ["require_labels", "require_pixels"]


def require_pixels(path: Path, shape: Sequence[int], dtype: str) -> None:
    """Raise if an array cannot be images of 8 bits a channel.

    Raises:
        DataFileError: If it has another dtype or shape.
        EmptyDataError: If it has no entries.

    Example:
        >>> require_pixels(Path("some.npy"), (7, 32, 32, 3), "uint8")

    """
    is_shaped = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not is_shaped or dtype.removeprefix("torch.") != "uint8":
        raise DataFileError(
            f"{path}: `images` must be uint8 of shape (images, height, width, 3), or (images, height, width) for "
            f"grey ones, got {dtype} of shape {tuple(shape)}.",
        )
    if 0 in shape:
        raise EmptyDataError(f"{path}: `images` has no pixels, got shape {tuple(shape)}.")


def require_labels(path: Path, shape: Sequence[int], dtype: str, *, images: int) -> None:
    """Raise if an array cannot be the labels of so many images.

    Raises:
        DataFileError: If its entries are no integers, or not one an image.

    Example:
        >>> require_labels(Path("some.npz"), (7,), "int64", images=7)

    """
    if tuple(shape) != (images,) or not dtype.removeprefix("torch.").startswith(("int", "uint")):
        raise DataFileError(
            f"{path}: `labels` must be integers of shape ({images},), got {dtype} of shape {tuple(shape)}.",
        )

"""Images as one tensor in a safetensors file, with labels or without."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opnp.data.digest import file_digest
from opnp.data.preprocessing import require_pillow
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageTensors"]


@dataclass(frozen=True, eq=False, slots=True)
class ImageTensors:
    """Images of a safetensors file, in its order.

    Attributes:
        path: The file.
        pixels: Shape ``(images, height, width, 3)``, or ``(images, height, width)`` for grey ones; uint8.
        labels: Their classes, or None.
        class_names: None: the labels are the classes.

    """

    path: Path
    pixels: Tensor
    labels: tuple[int, ...] | None
    class_names: None = None

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> "ImageTensors":
        """Return the images of a file with the tensors `images` and, where they are known, `labels`.

        Raises:
            MissingFileError: If there is no such file.
            DataFileError: If it is unreadable, lacks `images`, or a tensor has the wrong shape or dtype.
            EmptyDataError: If it holds no image.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = existing_file(path, content="images")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys() if name in ("images", "labels")}  # noqa: SIM118  # safe_open is no mapping
                held = ", ".join(sorted(file.keys())) or "nothing"
        except (SafetensorError, OSError) as error:
            raise DataFileError(
                f"{path} is no readable safetensors file ({error}): expected one with the tensor `images`, or a folder "
                f"of images.",
            ) from error
        if "images" not in tensors:
            raise DataFileError(f"{path} must hold the tensor `images`, but it holds {held}.")
        pixels, labels = tensors["images"], tensors.get("labels")
        is_shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
        if not is_shaped or pixels.dtype != torch.uint8:
            raise DataFileError(
                f"{path}: `images` must be uint8 of shape (images, height, width, 3), or (images, height, width) for "
                f"grey ones, got {pixels.dtype} of shape {tuple(pixels.shape)}.",
            )
        if pixels.numel() == 0:
            raise EmptyDataError(f"{path}: `images` has no pixels, got shape {tuple(pixels.shape)}.")
        if labels is not None and (labels.shape != pixels.shape[:1] or not _is_integer(labels)):
            raise DataFileError(
                f"{path}: `labels` must be integers of shape ({len(pixels)},), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}.",
            )
        return cls(path=path, pixels=pixels, labels=None if labels is None else tuple(labels.tolist()))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def image(self, index: int) -> "Image":
        """Return an image, RGB or grey."""
        from PIL import Image

        return Image.fromarray(self.pixels[index].numpy())

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return file_digest(self.path)


def _is_integer(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)

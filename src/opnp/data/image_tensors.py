"""Images as one tensor in a safetensors file, with labels or without."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from opnp.data.digest import file_digest
from opnp.data.input_source import Names
from opnp.data.pixel_checks import require_labels, require_pixels
from opnp.data.preprocessing import require_pillow
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError
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
    kind: ClassVar[SampleKind] = "image"

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
        require_pixels(path, pixels.shape, str(pixels.dtype))
        if labels is not None:
            require_labels(path, labels.shape, str(labels.dtype), images=len(pixels))
        return cls(path=path, pixels=pixels, labels=None if labels is None else tuple(labels.tolist()))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    @property
    def names(self) -> Names:
        """Rows of the images."""
        return Names(len(self.pixels), str)

    def sample(self, index: int) -> "Image":
        """Return an image, RGB or grey."""
        from PIL import Image

        return Image.fromarray(self.pixels[index].numpy())

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return file_digest(self.path)

"""Images as one array: a .npy file, or a .npz or .safetensors file with labels or without."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from opnp.data.digest import file_digest
from opnp.data.file_names import shown_text
from opnp.data.image_tensors import image_tensors
from opnp.data.input_source import Names
from opnp.data.numpy_files import numpy_arrays
from opnp.data.pixel_checks import checked_labels, require_pixels
from opnp.data.preprocessing import require_pillow
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageArrays"]


@dataclass(frozen=True, eq=False, slots=True)
class ImageArrays:
    """Images of a file of arrays, in its order.

    Those of a .npy file stay on disk until they are asked for, those of a .safetensors file are pages of it that the
    system loads and drops as it likes, and those of a .npz file are held in memory as a whole.

    Attributes:
        path: The file.
        pixels: Shape ``(images, height, width, 3)``, or ``(images, height, width)`` for grey ones; uint8.
        labels: Their classes, or None.
        class_names: None: the labels are the classes.

    """

    path: Path
    pixels: NDArray[np.uint8]
    labels: tuple[int, ...] | None
    class_names: None = None
    kind: ClassVar[SampleKind] = "image"

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, is_labelled: bool = True) -> "ImageArrays":
        """Return the images of a .npy file, or of `images` and, where they are known, `labels` in another file.

        Args:
            path: The file, ending in .npy, .npz or .safetensors.
            is_labelled: Whether labels are read; else they may be anything.

        Raises:
            MissingFileError: If there is no such file.
            DataFileError: If it is unreadable, holds pickled objects, lacks `images`, or an array has the wrong shape
                or dtype.
            EmptyDataError: If it holds no image.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = existing_file(path, content="images")
        arrays, held = image_tensors(path) if path.suffix.lower() == ".safetensors" else numpy_arrays(path)
        if "images" not in arrays:
            raise DataFileError(f"{path} must hold `images`, but it holds {shown_text(', '.join(held)) or 'nothing'}.")
        require_pixels(path, arrays["images"])
        pixels = np.asanyarray(arrays["images"])
        labels = arrays.get("labels") if is_labelled else None
        return cls(path, pixels, None if labels is None else checked_labels(path, labels, images=len(pixels)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what opens the file again in another process, instead of its pixels."""
        return partial(ImageArrays.from_path, is_labelled=self.labels is not None), (self.path,)

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

        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return file_digest(self.path)

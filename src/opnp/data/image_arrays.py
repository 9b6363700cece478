"""Images as one array of NumPy: a .npy file, or a .npz file with labels or without."""

import os
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import BadZipFile

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from opnp.data.digest import file_digest
from opnp.data.input_source import Names
from opnp.data.pixel_checks import require_labels, require_pixels
from opnp.data.preprocessing import require_pillow
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageArrays"]


@dataclass(frozen=True, eq=False, slots=True)
class ImageArrays:
    """Images of a file of NumPy, in its order. Those of a .npy file stay on disk until they are asked for.

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
    def from_path(cls, path: str | os.PathLike[str]) -> "ImageArrays":
        """Return the images of a .npy file, or of a .npz file with `images` and, where they are known, `labels`.

        Raises:
            MissingFileError: If there is no such file.
            DataFileError: If it is unreadable, holds pickled objects, lacks `images`, or an array has the wrong shape
                or dtype.
            EmptyDataError: If it holds no image.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = existing_file(path, content="images")
        arrays = _arrays(path)
        if "images" not in arrays:
            held = ", ".join(sorted(arrays)) or "nothing"
            raise DataFileError(f"{path} must hold the array `images`, but it holds {held}.")
        pixels, labels = arrays["images"], arrays.get("labels")
        require_pixels(path, pixels.shape, str(pixels.dtype))
        if labels is not None:
            require_labels(path, labels.shape, str(labels.dtype), images=len(pixels))
        return cls(path=path, pixels=pixels, labels=None if labels is None else tuple(labels.tolist()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what opens the file again in another process, instead of its pixels."""
        return ImageArrays.from_path, (self.path,)

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


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name; that of a .npy file, mapped into memory, as `images`."""
    try:
        if path.suffix.lower() == ".npy":
            return {"images": open_memmap(path, mode="r")}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            if "images" not in found.files:
                return dict.fromkeys(found.files, np.empty(0))  # their names are all that is told of them
            return {name: found[name] for name in ("images", "labels") if name in found.files}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        raise DataFileError(
            f"{path} is no readable file of NumPy ({error}): expected images in uint8, written by `numpy.save` or "
            f"`numpy.savez`.",
        ) from error

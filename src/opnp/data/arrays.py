"""Images as one array: a .npy file, or a .npz or .safetensors file with labels or without."""

import os
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as numpy_format
from numpy.typing import NDArray
from torch import Tensor

from opnp.artifact import opened_tensors
from opnp.data.files import Names, class_index, file_digest, shown_text
from opnp.data.preprocessing import SampleKind, require_pillow
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageArrays"]

_WANTED = ("images", "labels")
_MOST_TIMES = 1100
"""How many times its compressed size a content may have: a little above what deflate can reach."""


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
        arrays, held = (_tensors if path.suffix.lower() == ".safetensors" else _numpy_arrays)(path)
        if "images" not in arrays:
            raise DataFileError(f"{path} must hold `images`, but it holds {shown_text(', '.join(held)) or 'nothing'}.")
        _require_pixels(path, arrays["images"])
        pixels = np.asanyarray(arrays["images"])
        labels = arrays.get("labels") if is_labelled else None
        return cls(path, pixels, None if labels is None else _checked_labels(path, labels, images=len(pixels)))

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


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return `images` and `labels` of a safetensors file, as far as they are in it, and the names of all it holds."""
    try:
        found = opened_tensors(path, wanted=_WANTED)
    except ValueError as error:
        raise DataFileError(
            f"{path} is no readable safetensors file ({error}): expected one with the tensor `images`, or a folder "
            f"of images.",
        ) from error
    return dict(found.tensors), sorted(found.names)


def _numpy_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the same of a file of NumPy: that of a .npy file mapped into memory, those of a .npz file as a whole."""
    try:
        if path.suffix.lower() == ".npy":
            return {"images": numpy_format.open_memmap(path, mode="r")}, ["images"]
        with ZipFile(path) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = [name for name in _WANTED if name in held and "images" in held]
            return {name: _array(archive, held[name]) for name in names}, sorted(held)
    except MemoryError:
        raise
    except Exception as error:  # NumPy, zipfile and the parser of headers fail in their own ways on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataFileError(
            f"{path} is no readable file of NumPy ({reason}): expected images in uint8, written by `numpy.save` or "
            f"`numpy.savez`.",
        ) from error


def _array(archive: ZipFile, info: ZipInfo) -> NDArray[Any]:
    """Return an array of an archive; NumPy takes the memory that a header declares, so that must be in the file."""
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.file_size > _MOST_TIMES * (info.compress_size + 1):
        raise DataFileError(f"{info.filename} is packed in a way that NumPy does not use")
    with archive.open(info) as file:
        is_first = numpy_format.read_magic(file) == (1, 0)
        read = numpy_format.read_array_header_1_0 if is_first else numpy_format.read_array_header_2_0
        shape, _, dtype = read(file)
        declared, there = dtype.itemsize * prod(shape), info.file_size - file.tell()
        if not dtype.hasobject and declared != there:
            raise DataFileError(f"{info.filename} declares {declared} bytes in shape {shape} and holds {there}")
    with archive.open(info) as file:
        array: NDArray[Any] = numpy_format.read_array(file, allow_pickle=False)
    return array


def _require_pixels(path: Path, pixels: NDArray[Any] | Tensor) -> None:
    """Raise if an array cannot be images of 8 bits a channel, a single image in colours too."""
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


def _checked_labels(path: Path, labels: NDArray[Any] | Tensor, *, images: int) -> tuple[int, ...]:
    """Return the labels of so many images, raise if they are no integers of 64 bits, one an image."""
    shape, dtype = tuple(labels.shape), str(getattr(labels.dtype, "name", labels.dtype))  # in either order of bytes
    if shape != (images,) or not dtype.removeprefix("torch.").startswith(("int", "uint")):
        raise DataFileError(f"{path}: `labels` must be integers of shape ({images},), got {dtype} of shape {shape}.")
    return tuple(class_index(label, path=path) for label in labels.tolist())

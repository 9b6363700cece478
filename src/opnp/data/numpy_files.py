"""The arrays of a .npy or .npz file; nothing is unpickled, and no more memory is taken than the file can fill."""

from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from numpy.lib import format as numpy_format
from numpy.typing import NDArray

from opnp.errors import DataFileError

__all__ = ["numpy_arrays"]

_NAMES = ("images", "labels")
_ENDING = ".npy"
_MOST_TIMES = 1100
"""How many times its compressed size a content may have: a little above what deflate can reach."""


def numpy_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return `images` and `labels` of a file of NumPy, as far as they are in it, and the names of all that it holds.

    The array of a .npy file is mapped into memory, and is called `images`; those of a .npz file are held as a whole.

    Raises:
        DataFileError: If it cannot be read, holds pickled objects, or declares more than is in it.

    """
    try:
        if path.suffix.lower() == _ENDING:
            return {"images": numpy_format.open_memmap(path, mode="r")}, ["images"]
        with ZipFile(path) as archive:
            held = {info.filename.removesuffix(_ENDING): info for info in archive.infolist()}
            names = [name for name in _NAMES if name in held and "images" in held]
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
    """Return an array of an archive, after a look at what it declares."""
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.file_size > _MOST_TIMES * (info.compress_size + 1):
        raise DataFileError(f"{info.filename} is packed in a way that NumPy does not use")
    with archive.open(info) as file:
        version = numpy_format.read_magic(file)
        read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        shape, _, dtype = read(file)
        declared, there = int(dtype.itemsize) * _product(shape), info.file_size - file.tell()
        if not dtype.hasobject and declared != there:
            raise DataFileError(f"{info.filename} declares {declared} bytes in shape {shape} and holds {there}")
    with archive.open(info) as file:
        array: NDArray[Any] = numpy_format.read_array(file, allow_pickle=False)
    return array


def _product(shape: tuple[int, ...]) -> int:
    """Return the product of lengths, which in NumPy could overflow."""
    found = 1
    for length in shape:
        found *= length
    return found

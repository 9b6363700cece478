"""Images in files: one decoded completely, those of a folder, those that a list names, and those of an array."""

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.lib import format as numpy_format
from numpy.typing import NDArray

from opnp.artifact import opened_tensors
from opnp.core.labels import LABEL_NAMES
from opnp.data.samples import (
    Names,
    SampleKind,
    class_index,
    class_labels,
    column_names,
    file_digest,
    label_column,
    label_indices,
    printable_name,
    readable_digest,
    require_pillow,
    shown_text,
)
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_ENDINGS", "FileList", "ImageArrays", "ImageFolder", "decoded_image", "image_formats", "is_content"]

IMAGE_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Endings of the files that count as images in a folder, in any case, whether this Pillow can read them or not."""

_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its name. Others are rare, and the reader of EPS starts a program."""

_LEFT_OVERS = ("@eaDir", "__MACOSX")
"""Folders with thumbnails and the like that storage devices and macOS leave beside images."""

_DEEP = ("I", "F")
"""Modes of Pillow with more than 8 bits a channel begin with these letters."""


def decoded_image(content: Path | bytes) -> "Image":
    """Return an image in RGB, 8 bits a channel; orientation tags are not applied, the first frame of several.

    Args:
        content: The file, or what it holds.

    Raises:
        DataFileError: If it is no image, is cut off, or has more bits; the text is the reason alone.
        MissingExtraError: If Pillow is not installed.

    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=image_formats()) as image:
            mode = image.mode
            if not mode.startswith(_DEEP):
                # Through RGBA, as Pillow asks for palettes with transparency.
                return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        ending = content.suffix.lower() if isinstance(content, Path) else ""
        is_unknown = ending in IMAGE_ENDINGS and ending not in Image.registered_extensions()
        reason = f"the Pillow that is installed reads no {ending} files" if is_unknown else "no image"
        raise DataFileError(reason) from error
    except Exception as error:  # decoders raise whatever they come upon in damaged files
        # Of the system: without the path, which the name stands for.
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise DataFileError(reason) from error
    raise DataFileError(f"more than 8 bits a channel, mode {mode}: store it with 8 bits")


def image_formats() -> list[str]:
    """Return Pillow's names of the formats that are read and that this Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@dataclass(frozen=True, eq=False, slots=True)
class ImageFolder:
    """Images of a folder, ordered by class, then by path.

    Attributes:
        path: The folder.
        files: The images.
        labels: Their classes, or None where the folder has no subfolders.
        class_names: Names of the subfolders that were numbered 0, 1, ... in sorted order; None where the names are
            numbers, which are the classes themselves, or there are none.

    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    kind: ClassVar[SampleKind] = "image"

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, is_labelled: bool = True) -> "ImageFolder":
        """Return the images of a folder.

        Files and folders whose names begin with a dot are passed over, and so are ``@eaDir`` and ``__MACOSX``. A link
        to an image that is not there counts as an image that cannot be read.

        Args:
            path: The folder.
            is_labelled: Whether subfolders are classes; else all images count, at any depth, without labels.

        Raises:
            EmptyDataError: If there is no image in it, or none in the folder of a class.
            DataFileError: If images stand both in it and in its subfolders, two subfolders are the same class, or a
                link beside subfolders leads nowhere and may stand for a folder: its name has no ending, or those of the
                subfolders have one too, and it is no file of git-annex.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = Path(path)
        loose = sorted(file for file in path.iterdir() if _is_image(file))
        classes = _by_class(path)
        if not loose and not any(classes.values()):
            raise EmptyDataError(f"{path} holds no image: expected files ending in {', '.join(IMAGE_ENDINGS)}.")
        is_numbered = all(name.isascii() and name.isdigit() for name in classes)
        ordered = sorted(classes, key=lambda name: (int(name), len(name)) if is_numbered else name)
        files = (*loose, *(file for name in ordered for file in classes[name]))
        if not is_labelled or not any(classes.values()):
            return cls(path=path, files=files, labels=None, class_names=None)
        if loose:
            first = printable_name(next(name for name, images in classes.items() if images))
            raise DataFileError(
                f"{path} holds images ({printable_name(loose[0].name)}, ...) beside folders with images ({first}, "
                f"...): put them all in folders, one a class, or all together.",
            )
        empty = next((name for name in ordered if not classes[name]), None)
        if empty is not None and not is_numbered:
            raise EmptyDataError(
                f"{path / empty} holds no image. The classes are numbered by the sorted names of their folders: "
                f"remove the empty ones, or name all folders by the index of their class.",
            )
        numbers = [class_index(name, path=path) if is_numbered else row for row, name in enumerate(ordered)]
        for (one, number), (other, following) in pairwise(zip(ordered, numbers, strict=True)):
            if number == following:
                raise DataFileError(
                    f"{path}: the folders {one} and {other} are the same class: move all images to one."
                )
        return cls(
            path=path,
            files=files,
            labels=tuple(number for name, number in zip(ordered, numbers, strict=True) for _ in classes[name]),
            class_names=None if is_numbered else tuple(map(printable_name, ordered)),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @property
    def names(self) -> Names:
        """Paths of the images in the folder; bytes that are no UTF-8 are escaped."""
        return Names(len(self.files), lambda row: printable_name(self._name(row)))

    def sample(self, index: int) -> "Image":
        """Return an image of 8 bits a channel, decoded; orientation tags are not applied.

        Raises:
            DataFileError: If the file is no readable image; its text is the reason alone.

        """
        return decoded_image(self.files[index])

    def digest(self) -> str:
        """Return the SHA-256 over the paths within the folder and the content of all files."""
        digest = hashlib.sha256()
        for index, file in enumerate(self.files):
            digest.update(os.fsencode(f"{self._name(index)}\0{readable_digest(file)}\n"))
        return digest.hexdigest()

    def _name(self, index: int) -> str:
        return self.files[index].relative_to(self.path).as_posix()


def _by_class(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the images by name of the subfolder, at any depth in it."""
    entries = sorted(entry for entry in path.iterdir() if is_content(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    has_endings = any(folder.suffix for folder in folders)
    lost = next((each for each in entries if _is_lost_folder(each, has_endings=has_endings)), None)
    if folders and lost is not None:
        raise DataFileError(
            f"{path} holds {printable_name(lost.name)}, a link that leads nowhere: if it stands for a folder of "
            f"images, these would be missed. Mend or remove it.",
        )
    seen = {os.path.realpath(folder) for folder in (path, *folders)}  # a link to one of them leads back
    return {folder.name: tuple(sorted(_walked(folder, seen))) for folder in folders}


def _walked(start: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the images below a folder, through links too; each folder is entered once."""
    for place, subfolders, names in os.walk(start, followlinks=True):
        yield from (file for file in (Path(place, name) for name in names) if _is_image(file))
        entered = []
        for name in sorted(filter(is_content, subfolders)):
            real = os.path.realpath(Path(place, name))
            if real not in seen:
                seen.add(real)
                entered.append(name)
        subfolders[:] = entered


def is_content(name: str) -> bool:
    """Return whether a file or folder of this name belongs to what the owner put there."""
    return not name.startswith(".") and name not in _LEFT_OVERS


def _is_image(file: Path) -> bool:
    """Return whether a path has the name of an image and is a file, or a link to what is not there."""
    if file.suffix.lower() not in IMAGE_ENDINGS or not is_content(file.name):
        return False
    return file.is_file() or (file.is_symlink() and not file.exists())


def _is_lost_folder(entry: Path, *, has_endings: bool) -> bool:
    """Return whether an entry is a link that leads nowhere, and may stand for a folder of images.

    Args:
        entry: What stands beside the folders.
        has_endings: Whether the names of folders have endings, so that one does not tell a file.

    """
    if not entry.is_symlink() or entry.exists() or _is_image(entry) or (entry.suffix and not has_endings):
        return False
    return ("annex", "objects") not in pairwise(entry.readlink().parts)  # git-annex puts links for files alone


@dataclass(frozen=True, eq=False, slots=True)
class FileList:
    """Images that a file lists, in its order. What is listed and not there cannot be read.

    Attributes:
        path: The list.
        names: Paths as they are listed: relative to the folder of the list, or absolute.
        labels: Their classes, or None.
        class_names: Names that were numbered 0, 1, ... in sorted order; None where the labels are numbers.

    """

    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    kind: ClassVar[SampleKind] = "image"

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, is_labelled: bool = True) -> "FileList":
        """Return the images of a list: a .csv file of ``path`` or ``path,label``, else a file of one path a line.

        A .csv file may name its columns in the first line, `path` and `label`, in any order and among others.

        Args:
            path: The list.
            is_labelled: Whether labels are read; else they may be anything.

        Raises:
            MissingFileError: If there is no such file.
            DataFileError: If it is no text of this form, its first line names columns and none of them `path`, or
                labels are some missing and others not, or some numbers and others names.
            EmptyDataError: If it lists nothing.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = existing_file(path, content="a list of images")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                if path.suffix.lower() == ".csv":
                    rows = _rows(path, [row for row in csv.reader(file) if row])
                else:
                    rows = [(line.strip(), "") for line in file if line.strip()]
        except (OSError, UnicodeError, csv.Error) as error:
            raise DataFileError(f"{path} is no readable list of images ({error}).") from error
        if not rows:
            raise EmptyDataError(f"{path} lists no image: expected one path a line.")
        labels, class_names = class_labels([label for _, label in rows], path=path) if is_labelled else (None, None)
        return cls(path=path, names=tuple(name for name, _ in rows), labels=labels, class_names=class_names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def sample(self, index: int) -> "Image":
        """Return an image of 8 bits a channel, decoded; orientation tags are not applied.

        Raises:
            DataFileError: If the file is no readable image; its text is the reason alone.

        """
        return decoded_image(self._file(index))

    def digest(self) -> str:
        """Return the SHA-256 over the list and the content of all files."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            label = "" if self.labels is None else self.labels[index]
            digest.update(f"{name}\0{label}\0{readable_digest(self._file(index))}\n".encode())
        return digest.hexdigest()

    def _file(self, index: int) -> Path:
        return self.path.parent / self.names[index]


def _rows(path: Path, rows: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return path and label of each row."""
    header = [field.strip().casefold() for field in rows[0]] if rows else []
    at, label_at = 0, 1
    if "path" in header:
        names = column_names(path, rows[0])
        label = label_column(path, names)
        at, label_at = names.index("path"), -1 if label is None else names.index(label)
        rows = rows[1:]
    elif rows:
        columns = max(map(len, rows))
        if set(LABEL_NAMES) & set(header) or (columns > 1 and _is_unlike(rows)):
            raise DataFileError(
                f"{path}: its first line, {shown_text(', '.join(rows[0]))}, is read as names of columns, and none of "
                f"them is `path`: call the columns `path` and `label`, or leave that line out.",
            )
        if columns > 2:
            raise DataFileError(
                f"{path} has {columns} columns: expected path, or path and label, or a first line that names "
                f"`path` and `label`.",
            )
    found = [(_field(row, at), _field(row, label_at)) for row in rows]
    missing = next((number for number, (name, _) in enumerate(found, start=1) if not name), None)
    if missing is not None:
        raise DataFileError(f"{path}: row {missing} has no path.")
    return found


def _is_unlike(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether all rows but the first begin with the name of a picture: then that one names columns."""
    endings = [Path(_field(row, 0)).suffix.lower() for row in rows]
    return len(rows) > 1 and not endings[0] and set(endings[1:]) <= set(IMAGE_ENDINGS)


def _field(row: Sequence[str], column: int) -> str:
    return row[column].strip() if 0 <= column < len(row) else ""


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
        """Return the images of a .npy file, or of `images` and, where they are known, `label` or `labels` in another.

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
        arrays, held = _arrays(path)
        if "images" not in arrays:
            raise DataFileError(f"{path} must hold `images`, but it holds {shown_text(', '.join(held)) or 'nothing'}.")
        pixels = arrays["images"]
        _require_pixels(path, pixels)
        name = label_column(path, arrays) if is_labelled else None
        if name is None:
            return cls(path, pixels, None)
        labels = label_indices(arrays[name], path=path)
        if labels.shape != pixels.shape[:1]:
            raise DataFileError(f"{path}: `{name}` must be one an image, {len(pixels)} of them, got {len(labels)}.")
        return cls(path, pixels, class_labels(labels.tolist(), path=path)[0])

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


def _arrays(path: Path) -> tuple[Mapping[str, NDArray[Any]], list[str]]:
    """Return `images` and `labels`, as far as a file holds them, and the names of all it holds."""
    ending = path.suffix.lower()
    try:
        if ending == ".safetensors":
            found = opened_tensors(path, wanted=("images", *LABEL_NAMES))
            return {name: tensor.numpy() for name, tensor in found.tensors.items()}, sorted(found.names)
        if ending == ".npy":
            return {"images": numpy_format.open_memmap(path, mode="r")}, ["images"]
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # noqa: TID251  # without pickles
            return {name: archive[name] for name in ("images", *LABEL_NAMES) if name in archive}, sorted(archive)
    except Exception as error:  # NumPy, zipfile and the parser of headers fail in their own ways on damaged files
        kind = "safetensors file" if ending == ".safetensors" else "file of NumPy"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataFileError(
            f"{path} is no readable {kind} ({reason}): expected images in uint8, written by `numpy.save`, "
            f"`numpy.savez` or safetensors, or a folder of images.",
        ) from error


def _require_pixels(path: Path, pixels: NDArray[Any]) -> None:
    """Raise if an array cannot be images of 8 bits a channel, a single image in colours too."""
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise DataFileError(
            f"{path}: `images` must be uint8 of shape (images, height, width, 3), or (images, height, width) for "
            f"grey ones, got {pixels.dtype} of shape {shape}.",
        )
    if 0 in shape:
        raise EmptyDataError(f"{path}: `images` has no pixels, got shape {shape}.")
    if len(shape) == 3 and shape[2] == 3:
        raise DataFileError(
            f"{path}: `images` of shape {shape} is one image in colours, not {shape[0]} grey ones: store "
            f"`images[None]`, of shape {(1, *shape)}.",
        )

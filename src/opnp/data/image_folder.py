"""Images in a folder: one subfolder a class, or all together without labels."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from opnp.data.digest import readable_digest
from opnp.data.image_file import IMAGE_ENDINGS, decoded_image
from opnp.data.input_source import Names
from opnp.data.preprocessing import require_pillow
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError, EmptyDataError, MissingFileError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFolder"]


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
    def from_path(cls, path: str | os.PathLike[str]) -> "ImageFolder":
        """Return the images of a folder. Files and folders whose names begin with a dot are passed over.

        Raises:
            MissingFileError: If there is no such folder.
            EmptyDataError: If there is no image in it, or none in the folder of a class.
            DataFileError: If images stand both in it and in its subfolders.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = Path(path)
        if not path.is_dir():
            raise MissingFileError(f"{path} is no folder: expected one with images.")
        loose = tuple(sorted(file for file in path.iterdir() if _is_image(file)))
        classes = _by_class(path)
        if loose and any(classes.values()):
            raise DataFileError(
                f"{path} holds images ({loose[0].name}, ...) beside folders with images ({_first(classes)}, ...): put "
                f"them all in folders, one a class, or all together.",
            )
        if loose:
            return cls(path=path, files=loose, labels=None, class_names=None)
        if not any(classes.values()):
            raise EmptyDataError(f"{path} holds no image: expected files ending in {', '.join(IMAGE_ENDINGS)}.")
        is_numbered = all(name.isascii() and name.isdigit() for name in classes)
        empty = [name for name, files in classes.items() if not files]
        if empty and not is_numbered:
            raise EmptyDataError(
                f"{path / empty[0]} holds no image. The classes are numbered by the sorted names of their folders: "
                f"remove the empty ones, or name all folders by the index of their class.",
            )
        ordered = sorted(classes, key=int) if is_numbered else sorted(classes)
        numbers = {name: int(name) if is_numbered else index for index, name in enumerate(ordered)}
        return cls(
            path=path,
            files=tuple(file for name in ordered for file in classes[name]),
            labels=tuple(numbers[name] for name in ordered for _ in classes[name]),
            class_names=None if is_numbered else tuple(ordered),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @property
    def names(self) -> Names:
        """Paths of the images in the folder."""
        return Names(len(self.files), self._name)

    def sample(self, index: int) -> "Image":
        """Return an image of 8 bits a channel, decoded; orientation tags are not applied.

        Raises:
            DataFileError: If the file is no readable image; its text is the reason alone.

        """
        return decoded_image(self.files[index])

    def digest(self) -> str:
        """Return the SHA-256 over the paths within the folder and the content of all files."""
        digest = hashlib.sha256()
        for name, file in zip(self.names, self.files, strict=True):
            digest.update(f"{name}\0{readable_digest(file)}\n".encode())
        return digest.hexdigest()

    def _name(self, index: int) -> str:
        return self.files[index].relative_to(self.path).as_posix()


def _by_class(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the images by name of the subfolder, at any depth in it."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    starts = {_identity(folder) for folder in (path, *folders)}  # a link to one of them leads back
    return {folder.name: tuple(sorted(_walked(folder, starts))) for folder in folders}


def _walked(start: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the images below a folder, through links too; each folder is entered once."""
    for place, subfolders, names in os.walk(start, followlinks=True):
        yield from (file for file in (Path(place, name) for name in names) if _is_image(file))
        entered = []
        for name in sorted(name for name in subfolders if not name.startswith(".")):
            identity = _identity(Path(place, name))
            if identity not in seen:
                seen.add(identity)
                entered.append(name)
        subfolders[:] = entered


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from others, whatever path leads to it."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".") and file.is_file()


def _first(classes: dict[str, tuple[Path, ...]]) -> str:
    return next(name for name, files in classes.items() if files)

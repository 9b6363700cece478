"""Images in a folder: one subfolder a class, or all together without labels."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from opnp.data.class_labels import class_index
from opnp.data.digest import readable_digest
from opnp.data.file_names import name_bytes, printable_name
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
    def from_path(cls, path: str | os.PathLike[str], *, is_labelled: bool = True) -> "ImageFolder":
        """Return the images of a folder. Files and folders whose names begin with a dot are passed over.

        A link to an image that is not there counts as an image that cannot be read.

        Args:
            path: The folder.
            is_labelled: Whether subfolders are classes; else all images count, at any depth, without labels.

        Raises:
            MissingFileError: If there is no such folder.
            EmptyDataError: If there is no image in it, or none in the folder of a class.
            DataFileError: If images stand both in it and in its subfolders, two subfolders are the same class, or a
                link beside subfolders leads nowhere and may stand for a folder: its name has no ending, or those of the
                subfolders have one too, and it is no file of git-annex.
            MissingExtraError: If Pillow is not installed.

        """
        require_pillow()
        path = Path(path)
        if not path.is_dir():
            raise MissingFileError(f"{path} is no folder: expected one with images.")
        loose = tuple(sorted(file for file in path.iterdir() if _is_image(file)))
        classes = _by_class(path)
        if not loose and not any(classes.values()):
            raise EmptyDataError(f"{path} holds no image: expected files ending in {', '.join(IMAGE_ENDINGS)}.")
        is_numbered = all(name.isascii() and name.isdigit() for name in classes)
        ordered = sorted(classes, key=_number) if is_numbered else sorted(classes)
        files = (*loose, *(file for name in ordered for file in classes[name]))
        if not is_labelled or not any(classes.values()):
            return cls(path=path, files=files, labels=None, class_names=None)
        _require_one_kind(path, loose, classes)
        numbers = _numbers(path, ordered) if is_numbered else {name: index for index, name in enumerate(ordered)}
        empty = [name for name in ordered if not classes[name]]
        if empty and not is_numbered:
            raise EmptyDataError(
                f"{path / empty[0]} holds no image. The classes are numbered by the sorted names of their folders: "
                f"remove the empty ones, or name all folders by the index of their class.",
            )
        return cls(
            path=path,
            files=files,
            labels=tuple(numbers[name] for name in ordered for _ in classes[name]),
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
            digest.update(name_bytes(f"{self._name(index)}\0{readable_digest(file)}\n"))
        return digest.hexdigest()

    def _name(self, index: int) -> str:
        return self.files[index].relative_to(self.path).as_posix()


def _by_class(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the images by name of the subfolder, at any depth in it."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    has_endings = any(folder.suffix for folder in folders)
    lost = next((each for each in entries if _is_lost_folder(each, has_endings=has_endings)), None)
    if folders and lost is not None:
        raise DataFileError(
            f"{path} holds {printable_name(lost.name)}, a link that leads nowhere: if it stands for a folder of "
            f"images, these would be missed. Mend or remove it.",
        )
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
    """Return whether a path has the name of an image and is a file, or a link to what is not there."""
    if file.suffix.lower() not in IMAGE_ENDINGS or file.name.startswith("."):
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


def _require_one_kind(path: Path, loose: tuple[Path, ...], classes: dict[str, tuple[Path, ...]]) -> None:
    if loose:
        first = printable_name(next(name for name, files in classes.items() if files))
        raise DataFileError(
            f"{path} holds images ({printable_name(loose[0].name)}, ...) beside folders with images ({first}, ...): "
            f"put them all in folders, one a class, or all together.",
        )


def _numbers(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the classes of folders that are named by them."""
    numbers = {name: class_index(name, path=path) for name in names}
    for one, other in pairwise(names):
        if numbers[one] == numbers[other]:
            raise DataFileError(f"{path}: the folders {one} and {other} are the same class: move all images to one.")
    return numbers


def _number(name: str) -> tuple[int, str, int]:
    """Return what sorts names of digits by their number, however long they are."""
    digits = name.lstrip("0")
    return len(digits), digits, len(name)

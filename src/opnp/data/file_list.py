"""Images by a list of files: one path a line, or a table of paths and labels."""

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from opnp.data.class_labels import class_labels
from opnp.data.csv_columns import LABEL_COLUMNS, column_names
from opnp.data.digest import readable_digest
from opnp.data.file_names import shown_text
from opnp.data.image_file import IMAGE_ENDINGS, decoded_image
from opnp.data.preprocessing import require_pillow
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FileList"]

_COLUMNS = ("path", "label")


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
                    lines = (line.strip() for line in file)
                    rows = [(line, "") for line in lines if line]
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
    if "path" in header:
        names = column_names(path, rows[0])
        at, label_at = names.index("path"), next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
        rows = rows[1:]
    else:
        columns = max((len(row) for row in rows), default=0)
        if set(LABEL_COLUMNS) & set(header) or (columns > 1 and _is_unlike(rows)):
            raise DataFileError(
                f"{path}: its first line, {shown_text(', '.join(rows[0]))}, is read as names of columns, and none of "
                f"them is `path`: call the columns `path` and `label`, or leave that line out.",
            )
        if columns > len(_COLUMNS):
            raise DataFileError(
                f"{path} has {columns} columns: expected path, or path and label, or a first line that names "
                f"`path` and `label`.",
            )
        at, label_at = 0, 1
    found = [(_field(row, at), _field(row, label_at)) for row in rows]
    missing = next((number for number, (name, _) in enumerate(found, start=1) if not name), None)
    if missing is not None:
        raise DataFileError(f"{path}: row {missing} has no path.")
    return found


def _is_unlike(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether all rows but the first begin with the name of a picture: then that one names columns."""
    endings = [Path(_field(row, 0)).suffix.lower() for row in rows]
    return len(rows) > 1 and not endings[0] and set(endings[1:]) <= set(IMAGE_ENDINGS)


def _field(row: Sequence[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""

"""Texts in a file, one a line as JSON, or in a column of a .csv file; they stay on disk until they are asked for."""

import csv
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from opnp.data.samples import Names, SampleKind, class_labels, column_names, file_digest, label_column, shown_text
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

__all__ = ["TextFile", "checked_text"]

_Record = bytes | list[str]
"""A line of JSON, or the fields of a .csv file."""


def checked_text(value: object) -> str:
    """Return a value if it is a text with something in it.

    Raises:
        DataFileError: If it is none; the message is the reason alone.

    Example:
        >>> checked_text("a word")
        'a word'

    """
    if not isinstance(value, str):
        raise DataFileError("no text" if value is None else f"a text is needed, got {type(value).__name__}")
    if not value.strip():
        raise DataFileError("the text is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataFileError("the text is no valid Unicode") from error
    return value


@dataclass(frozen=True, eq=False, slots=True)
class TextFile:
    """Texts of a file, in its order.

    Attributes:
        path: The file.
        header: Names of the columns of a .csv file; None for lines of JSON.
        places: Where each text's record begins in the file, in bytes.
        lines: The line that it begins in, from 1.
        labels: Their classes, or None; 0 for a record that cannot be read.
        class_names: Names that were numbered 0, 1, ... in sorted order; None where the labels are numbers.

    """

    path: Path
    header: tuple[str, ...] | None
    places: Sequence[int]
    lines: Sequence[int]
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None
    kind: ClassVar[SampleKind] = "text"

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, is_labelled: bool = True) -> "TextFile":
        """Return the texts of a file of ``{"text": ..., "label": ...}`` a line, or of a .csv file with these columns.

        Labels may be left out. A record without a text counts as one that cannot be read.

        Args:
            path: The file.
            is_labelled: Whether labels are read; else they may be anything.

        Raises:
            MissingFileError: If there is no such file.
            DataFileError: If a .csv file has no column `text`, or labels are some missing and others not, or some
                numbers and others names.
            EmptyDataError: If it holds nothing.

        """
        path = existing_file(path, content="texts")
        is_csv, header = path.suffix.lower() == ".csv", None
        places, lines, labels, read = array("q"), array("q"), list[object](), list[bool]()
        try:
            with path.open("rb") as file:
                for place, line, record in (_csv_records if is_csv else _json_records)(file):
                    if is_csv and header is None:
                        header = _header(path, record)
                        continue
                    places.append(place)
                    lines.append(line)
                    try:
                        values = _values(record, header)
                        checked_text(values.get("text"))
                    except DataFileError:
                        read.append(False)
                    else:
                        read.append(True)
                        labels.append(_label(path, values) if is_labelled else None)
        except (OSError, UnicodeError, csv.Error) as error:
            way_out = ": longer texts are read from a .jsonl file" if "field limit" in str(error) else ""
            raise DataFileError(f"{path} is no readable file of texts ({error}){way_out}.") from error
        if not places:
            raise EmptyDataError(f"{path} holds no text.")
        numbers, names = class_labels(labels, path=path)
        if numbers is None:
            return cls(path, header, places, lines, None, names)
        found = iter(numbers)
        return cls(path, header, places, lines, array("q", (next(found) if each else 0 for each in read)), names)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.places)

    @property
    def names(self) -> Names:
        """Lines of the file."""
        return Names(len(self.places), lambda row: f"line {self.lines[row]}")

    def sample(self, index: int) -> str:
        """Return a text.

        Raises:
            DataFileError: If the record holds none; the message is the reason alone.

        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.places[index])
                _, _, record = next((_json_records if self.header is None else _csv_records)(file))
        except (OSError, UnicodeError, csv.Error, StopIteration) as error:
            raise DataFileError(f"the file has changed ({error})") from error
        return checked_text(_values(record, self.header).get("text"))

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return file_digest(self.path)


def _json_records(file: IO[bytes]) -> Iterator[tuple[int, int, _Record]]:
    """Yield place, line and content of each line that is not blank."""
    place = file.tell()
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield place, number, line
        place += len(line)


def _csv_records(file: IO[bytes]) -> Iterator[tuple[int, int, _Record]]:
    """Yield place, line and fields of each record that is not blank; a record may go over several lines."""
    places = [file.tell()]

    def lines() -> Iterator[str]:
        for line in file:
            places[0] += len(line)
            yield line.decode("utf-8-sig")

    reader = csv.reader(lines())
    while True:
        place, number = places[0], reader.line_num + 1
        fields = next(reader, None)
        if fields is None:
            return
        if fields:
            yield place, number, fields


def _header(path: Path, record: _Record) -> tuple[str, ...]:
    """Return the columns of a .csv file by its first record."""
    names = column_names(path, [str(field) for field in record])
    if "text" not in names:
        shown = shown_text(", ".join(map(str, record)))
        raise DataFileError(f"{path} must have a column `text`, but its first line is {shown}.")
    return names


def _values(record: _Record, header: Sequence[str] | None) -> Mapping[str, object]:
    """Return what a record holds by name, raise with the reason alone if it is no record."""
    return _json_object(record) if isinstance(record, bytes) else dict(zip(header or (), record, strict=False))


def _label(path: Path, values: Mapping[str, object]) -> object:
    """Return the label among the values of a record, or None."""
    name = label_column(path, values)
    label = None if name is None else values[name]
    return label.strip() if isinstance(label, str) else label


def _json_object(line: bytes) -> dict[str, object]:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise DataFileError(f"no JSON: {error}") from error
    except RecursionError as error:
        raise DataFileError("no JSON: brackets within brackets too deep") from error
    if not isinstance(values, dict):
        raise DataFileError('no object of JSON such as {"text": "..."}')
    return values

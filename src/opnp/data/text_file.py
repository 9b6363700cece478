"""Texts in a file, one a line as JSON, or in a column of a .csv file; they stay on disk until they are asked for."""

import csv
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from opnp.data.class_labels import class_labels
from opnp.data.csv_columns import LABEL_COLUMNS, column_names
from opnp.data.digest import file_digest
from opnp.data.file_names import shown_text
from opnp.data.input_source import Names
from opnp.data.text_content import checked_text
from opnp.data.transform import SampleKind
from opnp.errors import DataFileError, EmptyDataError
from opnp.files import existing_file

__all__ = ["TextFile"]


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
        header: tuple[str, ...] | None = None
        places, lines, labels = array("q"), array("q"), list[object]()
        read: list[bool] = []
        try:
            with path.open("rb") as file:
                records = _json_records(file) if path.suffix.lower() != ".csv" else _csv_records(file)
                for place, line, record in records:
                    if header is None and isinstance(record, list):
                        header = _checked_header(path, tuple(record))
                        continue
                    places.append(place)
                    lines.append(line)
                    text, label = _taken(record, header)
                    read.append(not isinstance(text, DataFileError))
                    labels.append(label if is_labelled else None)
        except (OSError, UnicodeError, csv.Error) as error:
            way_out = ": longer texts are read from a .jsonl file" if "field limit" in str(error) else ""
            raise DataFileError(f"{path} is no readable file of texts ({error}){way_out}.") from error
        if not places:
            raise EmptyDataError(f"{path} holds no text.")
        numbers, names = class_labels(
            [label for label, is_read in zip(labels, read, strict=True) if is_read], path=path
        )
        return cls(path, header, places, lines, None if numbers is None else _spread(numbers, read), names)

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
                records = _json_records(file) if self.header is None else _csv_records(file)
                _, _, record = next(records)
        except (OSError, UnicodeError, csv.Error, StopIteration) as error:
            raise DataFileError(f"the file has changed ({error})") from error
        text, _ = _taken(record, self.header)
        if isinstance(text, DataFileError):
            raise text
        return text

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return file_digest(self.path)


def _json_records(file: IO[bytes]) -> Iterator[tuple[int, int, object]]:
    """Yield place, line and content of each line that is not blank."""
    place = file.tell()
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield place, number, line
        place += len(line)


def _csv_records(file: IO[bytes]) -> Iterator[tuple[int, int, object]]:
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


def _taken(record: object, header: Sequence[str] | None) -> tuple[str | DataFileError, object]:
    """Return the text of a record, or why there is none, and its label."""
    try:
        values = _values(record, header)
        label = next((values[name] for name in LABEL_COLUMNS if name in values), None)
        return checked_text(values.get("text")), label.strip() if header and isinstance(label, str) else label
    except DataFileError as error:
        return error, None


def _values(record: object, header: Sequence[str] | None) -> dict[str, object]:
    if header is not None and isinstance(record, list):
        return dict(zip(header, record, strict=False))
    try:
        values = json.loads(record.decode("utf-8-sig")) if isinstance(record, bytes) else None
    except ValueError as error:
        raise DataFileError(f"no JSON: {error}") from error
    except RecursionError as error:
        raise DataFileError("no JSON: brackets within brackets too deep") from error
    if not isinstance(values, dict):
        raise DataFileError('no object of JSON such as {"text": "..."}')
    return values


def _checked_header(path: Path, header: tuple[str, ...]) -> tuple[str, ...]:
    names = column_names(path, header)
    if "text" not in names:
        raise DataFileError(f"{path} must have a column `text`, but its first line is {shown_text(', '.join(header))}.")
    return names


def _spread(numbers: Sequence[int], read: Sequence[bool]) -> Sequence[int]:
    """Return the labels of the records that were read in their places, and 0 in the others."""
    found = iter(numbers)
    return array("q", (next(found) if is_read else 0 for is_read in read))

"""The index of a folder of feature shards: what each file holds, written when all of them are whole."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from opnp.errors import DataFileError, MissingFileError
from opnp.files import existing_file, write_atomically
from opnp.files.json_text import json_values
from opnp.files.typed_json import typed_value

__all__ = ["INDEX_NAME", "Shard", "ShardIndex"]

INDEX_NAME = "index.json"

_FORMAT = "opnp feature shards"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a folder of shards.

    Attributes:
        file: Name in the folder.
        rows: Number of rows.
        bytes: Size of the file.
        sha256: Digest of the file, 64 hexadecimal digits.

    """

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What a folder of shards holds.

    Attributes:
        width: Number of features of a row.
        dtype: Their dtype, such as ``"float16"``.
        is_labelled: Whether there is a label for each row.
        shards: The files, in the order of their rows.

    Example:
        >>> index = ShardIndex(width=4, dtype="float16", is_labelled=False, shards=(Shard("a", 3, 88, "00"),))
        >>> ShardIndex.from_json(index.to_json()) == index, index.rows
        (True, 3)

    """

    width: int
    dtype: str
    is_labelled: bool
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Number of rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def digest(self) -> str:
        """Return the SHA-256 of the index, which holds those of all files."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the index as text, for `from_json`."""
        head = {"format": _FORMAT, "version": _VERSION, "rows": self.rows}
        return json.dumps(head | asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the index that `to_json` wrote.

        Raises:
            DataFileError: If the text is no index of this version, or does not add up.

        """
        try:
            values = json_values(text)
            found = values.pop("format"), values.pop("version")
            if found == (_FORMAT, _VERSION):
                rows = values.pop("rows")
                index = typed_value(cls, values)
                _require_rows(index, rows)
                return index
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"it lacks or garbles something ({error})") from error
        if found[0] != _FORMAT:
            raise DataFileError("it is no index of opnp")
        raise DataFileError(f"it has version {found[1]!r}, and this opnp reads version {_VERSION}")

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the index of a folder, whole or not at all."""
        write_atomically(Path(folder) / INDEX_NAME, self.to_json().encode())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the index of a folder whose files are all there, in their sizes.

        Raises:
            MissingFileError: If there is no index, or a shard is missing.
            DataFileError: If the index cannot be read, or a shard has another size.

        """
        path = Path(folder) / INDEX_NAME
        if not os.path.lexists(path):
            raise MissingFileError(
                f"{folder} is a folder without {INDEX_NAME}: expected a safetensors file with cached features, or a "
                f"folder of feature shards that was written to its end."
            )
        existing_file(path, content="what a folder of feature shards holds")
        try:
            index = cls.from_json(path.read_text(encoding="utf-8"))
        except (DataFileError, OSError, UnicodeDecodeError) as error:
            raise DataFileError(f"{path} cannot be read: {error}. Write the folder again.") from error
        for shard in index.shards:
            index.require_whole(Path(folder) / shard.file, size=shard.bytes)
        return index

    @staticmethod
    def require_whole(path: Path, *, size: int) -> None:
        """Raise if a shard is missing or has another size than the index says."""
        try:
            is_there = path.is_file()
        except OSError:  # such as a name that is too long
            is_there = False
        if not is_there:
            raise MissingFileError(f"{path} is missing, but {INDEX_NAME} names it. Copy or write the folder again.")
        if path.stat().st_size != size:
            raise DataFileError(
                f"{path} has {path.stat().st_size} bytes, but {INDEX_NAME} says {size}. Copy or write the folder again."
            )


def _require_rows(index: ShardIndex, rows: object) -> None:
    """Raise ValueError unless the shards have so many rows, and names within their folder."""
    is_whole = index.rows == rows and index.shards and all(shard.rows > 0 for shard in index.shards)
    if not is_whole or any(Path(shard.file).name != shard.file for shard in index.shards):
        message = "its shards do not add up"
        raise ValueError(message)

"""Features as a folder of shards: files of one size, and an index that is written when all of them are whole."""

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

from opnp.core.checks import checked_matrix, require_finite
from opnp.core.labels import class_indices
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, MissingFileError, OptionError, ShapeError
from opnp.files import write_atomically
from opnp.values.reading import Value, json_values

__all__ = ["INDEX_NAME", "FeatureShardWriter", "Shard", "ShardIndex"]

INDEX_NAME = "index.json"

_FORMAT = "opnp feature shards"
_VERSION = 1
_ROWS = 16384
_PATTERN = "features-*.safetensors"


class Shard(Value, frozen=True):
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


class ShardIndex(Value, frozen=True):
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
        return json.dumps(head | msgspec.to_builtins(self), indent=1, sort_keys=True) + "\n"

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
                index = msgspec.convert(values, cls)
                is_whole = index.rows == rows and index.shards and all(shard.rows > 0 for shard in index.shards)
                if is_whole and all(Path(shard.file).name == shard.file for shard in index.shards):
                    return index
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataFileError(f"it lacks or garbles something ({error})") from error
        if found[0] != _FORMAT:
            raise DataFileError("it is no index of opnp")
        if found[1] != _VERSION:
            raise DataFileError(f"it has version {found[1]!r}, and this opnp reads version {_VERSION}")
        raise DataFileError("its shards do not add up")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the index of a folder whose files are all there, in their sizes.

        Raises:
            MissingFileError: If there is no index, or a shard is missing.
            DataFileError: If the index cannot be read, or a shard has another size.

        """
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise MissingFileError(
                f"{folder} is a folder without {INDEX_NAME}: expected a safetensors file with cached features, or a "
                f"folder of feature shards that was written to its end."
            )
        try:
            index = cls.from_json(path.read_text(encoding="utf-8"))
        except (DataFileError, OSError, UnicodeDecodeError) as error:
            raise DataFileError(f"{path} cannot be read: {error}. Write the folder again.") from error
        for shard in index.shards:
            file = Path(folder) / shard.file
            if not file.is_file():
                raise MissingFileError(f"{file} is missing, but {INDEX_NAME} names it. Copy or write the folder again.")
            if file.stat().st_size != shard.bytes:
                raise DataFileError(
                    f"{file} has {file.stat().st_size} bytes, but {INDEX_NAME} says {shard.bytes}. Copy or write the "
                    f"folder again."
                )
        return index


class FeatureShardWriter:
    """Writes blocks of features to a folder of safetensors files, for `open_features`.

    One shard is held in memory, whatever the number of rows. A folder without an index is not finished: the index is
    written by `close`, or at the end of a ``with`` block; an error inside the block removes what was written.

    Args:
        folder: Folder to write; made if it does not exist. What an unfinished writer left there is replaced.
        rows_per_shard: Rows of a file; the last may have fewer. A multiple of 8192 is read without a copy.
        dtype: Floating dtype on disk.
        is_replacing: Whether to replace shards that were written to their end.

    Raises:
        OptionError: If an option is out of range.
        MissingFileError: If the folder's parent does not exist, or a finished set of shards would be replaced.

    Example:
        >>> import tempfile, torch
        >>> from opnp.data import open_features
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FeatureShardWriter(folder, rows_per_shard=4) as writer:
        ...         writer.write(torch.ones(3, 2), torch.tensor([0, 1, 0]))
        ...         writer.write(torch.zeros(3, 2), torch.tensor([1, 1, 1]))
        ...     source = open_features(folder)
        ...     source.rows, source.read(2, 5)[1].tolist()
        (6, [0, 1, 1])

    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        rows_per_shard: int = _ROWS,
        dtype: torch.dtype = torch.float16,
        is_replacing: bool = False,
    ) -> None:
        """Make or clear the folder."""
        if isinstance(rows_per_shard, bool) or not isinstance(rows_per_shard, int) or rows_per_shard < 1:
            raise OptionError(f"`rows_per_shard` must be a positive number of rows, got {rows_per_shard!r}.")
        if not dtype.is_floating_point:
            raise OptionError(f"`dtype` must be a floating dtype such as torch.float16, got {dtype}.")
        self._folder = Path(folder)
        self._rows_per_shard, self._dtype = rows_per_shard, dtype
        self._shards: list[Shard] = []
        self._features: Tensor | None = None
        self._labels = torch.empty(rows_per_shard, dtype=torch.int64, device="cpu")
        self._is_labelled: bool | None = None
        self._filled = 0
        self._written = 0
        self._is_open = True
        if not self._folder.is_dir():
            if self._folder.exists() or not self._folder.parent.is_dir():
                raise MissingFileError(f"{self._folder} must be a folder, or a name for one in a folder that exists.")
            self._folder.mkdir()
        index = self._folder / INDEX_NAME
        if index.exists() and not is_replacing:
            raise MissingFileError(
                f"{self._folder} holds feature shards already. Name another folder, or replace them: "
                f"`is_replacing=True`."
            )
        index.unlink(missing_ok=True)  # first: without it the rest is not taken for whole
        for path in (*self._folder.glob(_PATTERN), *self._folder.glob(f".{_PATTERN}.*.part")):
            path.unlink()

    def write(self, features: Tensor, labels: object = None) -> None:
        """Take a block of rows.

        Args:
            features: Shape ``(rows, features)``, any floating dtype and device.
            labels: Class indices of the rows, in any form that `class_indices` reads; with every block or with none.

        Raises:
            ShapeError: If a block has another width than the first, or not one label a row.
            InputTypeError: If features are not floating point, labels name no class, or some blocks have none.
            NonFiniteError: If features are not finite, or overflow in the dtype on disk.
            OptionError: If the writer is closed.

        """
        if not self._is_open:
            raise OptionError("This writer is closed: its index is written. Write to another folder.")
        checked_matrix(features, name="features", axes="(batch, features)")
        indices = self._checked_labels(features, labels)
        rows = features.detach().to("cpu", self._dtype)
        require_finite(rows, name="features", where=f" in {self._dtype}", first_row=self._written)
        if self._features is None:
            self._features = torch.empty(self._rows_per_shard, rows.shape[1], dtype=self._dtype, device="cpu")
        taken = 0
        while taken < len(rows):
            count = min(self._rows_per_shard - self._filled, len(rows) - taken)
            place = slice(self._filled, self._filled + count)
            self._features[place] = rows[taken : taken + count]
            if indices is not None:
                self._labels[place] = indices[taken : taken + count]
            self._filled, taken = self._filled + count, taken + count
            if self._filled == self._rows_per_shard:
                self._flush()
        self._written += len(rows)

    def close(self) -> None:
        """Write the last shard and the index; do nothing if that is done.

        Raises:
            EmptyDataError: If no row was written.

        """
        if not self._is_open:
            return
        if self._written == 0 or self._features is None:
            raise EmptyDataError(f"No row was written to {self._folder}: there is nothing to make an index of.")
        self._flush()
        index = ShardIndex(
            width=self._features.shape[1],
            dtype=str(self._dtype).removeprefix("torch."),
            is_labelled=bool(self._is_labelled),
            shards=tuple(self._shards),
        )
        write_atomically(self._folder / INDEX_NAME, index.to_json().encode())
        self._is_open = False

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the index, or remove the shards if there was an error."""
        try:
            if kind is None:
                self.close()
        finally:
            if self._is_open:
                self._is_open = False
                for shard in self._shards:
                    (self._folder / shard.file).unlink(missing_ok=True)

    def _checked_labels(self, features: Tensor, labels: object) -> Tensor | None:
        """Return the labels of a block as class indices, once the block is seen to go with those before."""
        if self._features is not None and features.shape[1] != self._features.shape[1]:
            raise ShapeError(
                f"`features` must have {self._features.shape[1]} columns as the blocks before, got {features.shape[1]}."
            )
        if self._is_labelled not in (None, labels is not None):
            raise InputTypeError("`labels` must come with every block or with none.")
        self._is_labelled = labels is not None
        indices = None if labels is None else class_indices(labels)
        if indices is not None and indices.shape != features.shape[:1]:
            raise ShapeError(f"`labels` must have shape ({len(features)},), got {tuple(indices.shape)}.")
        return indices

    def _flush(self) -> None:
        if self._filled == 0 or self._features is None:
            return
        tensors = {"features": self._features[: self._filled]}
        if self._is_labelled:
            tensors["labels"] = self._labels[: self._filled]
        content = save(tensors)
        name = f"features-{len(self._shards):05d}.safetensors"
        write_atomically(self._folder / name, content)
        digest = hashlib.sha256(content).hexdigest()
        self._shards.append(Shard(file=name, rows=self._filled, bytes=len(content), sha256=digest))
        self._filled = 0

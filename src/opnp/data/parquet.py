"""Features in Parquet files, one or a folder of them, on this machine or at an address, read a range at a time."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from opnp.data.addresses import opened_place
from opnp.data.samples import label_column
from opnp.data.tables import feature_table, parquet_numbers
from opnp.errors import DataFileError, EmptyDataError, OptionError, require_installed

__all__ = ["ParquetFeatures", "is_parquet", "parquet_dataset"]

_BATCH = 8192
"""Rows that are decoded at a time."""
_BUFFER = 1 << 20
"""Bytes of a column that are read at a time."""


def is_parquet(place: str | os.PathLike[str]) -> bool:
    """Return whether a path or an address names a Parquet file, or a folder right in which there is one.

    Raises:
        DataFileError: If Arrow opens no such address.
        MissingExtraError: If an address is to be looked at, and pyarrow is not installed.

    Example:
        >>> is_parquet("s3://bucket/features.parquet"), is_parquet("images.csv")
        (True, False)

    """
    text = os.fspath(place)
    if text.lower().rstrip("/").endswith(".parquet"):
        return True
    if "://" not in text:
        return os.path.isdir(text) and any(name.lower().endswith(".parquet") for name in os.listdir(text))  # noqa: PTH112, PTH208  # `text` may be what no Path is
    require_installed("Parquet needs", "pyarrow", extra="bench")
    from pyarrow import fs

    filesystem, path = opened_place(text)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return any(each.path.lower().endswith(".parquet") for each in found)


def parquet_dataset(place: str, *, filesystem: Any = None) -> Any:  # noqa: ANN401  # of a package without types
    """Return the data set of Arrow of a Parquet file or a folder of such; pages are compared with their checksums."""
    from pyarrow import dataset

    options = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = dataset.ParquetFileFormat(default_fragment_scan_options=options)
    return dataset.dataset(place, filesystem=filesystem, format=form)


class ParquetFeatures:
    """Features of one Parquet file, or of all in a folder in the order of their paths: a `FeatureSource`.

    What is a feature is said by the rules of `read_feature_table`. A row group is decoded in batches, of which the last
    is held: ranges in ascending order decode each row once, and one that goes back begins its row group anew.

    Args:
        place: A path, or an address that Arrow knows, such as ``s3://bucket/folder``.
        feature_names: The columns of numbers to take, in this order, as ``detector.feature_names`` tells; None for all.

    Attributes:
        rows: Number of rows.
        width: Number of features of a row.
        is_labelled: Whether there is a label for each row.
        first_row: Number of the first row: 0.
        row_groups: Path and number of rows of each row group, in the order of the rows.
        feature_names: Names of the features, where they are columns of numbers; else None.

    Raises:
        DataFileError: If nothing can be read there, there are no features in it, or files have other columns or types
            than the first.
        EmptyDataError: If there are no rows.
        MissingExtraError: If pyarrow is not installed.

    Warns:
        ColumnWarning: If columns are left out.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa
        >>> from pyarrow import parquet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, number in {"a": 0.5, "b": 2.0}.items():
        ...         table = pa.table({"width": [number], "height": [1.0], "label": [3]})
        ...         parquet.write_table(table, f"{folder}/{name}.parquet")
        ...     source = ParquetFeatures(folder)
        ...     source.rows, source.width, source.read(1, 2)
        (2, 2, (tensor([[2., 1.]], dtype=torch.float64), tensor([3])))

    """

    def __init__(self, place: str | os.PathLike[str], *, feature_names: Sequence[str] | None = None) -> None:
        """Read what the files say of themselves, and the first rows."""
        require_installed("Parquet needs", "pyarrow", extra="bench")
        import pyarrow as pa

        self.place = os.fspath(place)
        filesystem, path = opened_place(self.place)
        try:
            files = sorted(
                parquet_dataset(path, filesystem=filesystem).get_fragments(), key=lambda fragment: fragment.path
            )
            self._groups = [group for file in files for group in file.split_by_row_group()]
            lengths = [sum(part.num_rows for part in group.row_groups) for group in self._groups]
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataFileError(
                f"{self.place} cannot be read as Parquet ({type(error).__name__}: {reason})."
            ) from error
        self.row_groups = [(group.path, rows) for group, rows in zip(self._groups, lengths, strict=True)]
        self._schema = _common_schema(files, self.place)
        self._edges = list(pairwise(accumulate(lengths, initial=0)))
        self._held: tuple[int, _Rows, Iterator[_Rows]] | None = None
        self._wanted = feature_names
        self._columns: list[str] | None = None
        self.feature_names: tuple[str, ...] | None = None
        self.rows, self.first_row = sum(lengths), 0
        if self.rows == 0:
            raise EmptyDataError(f"{self.place} holds no rows: at least one sample is needed.")
        self.width = 0
        self.is_labelled = self.read(0, 1)[1] is not None
        self._held = None  # with all columns

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` (not included), shape ``(rows, features)``, and their labels or None.

        Raises:
            OptionError: If there are no such rows.
            DataFileError: If a file is unreadable, or lacks values.

        """
        if not 0 <= start < stop <= self.rows:
            raise OptionError(f"Rows must lie in 0 to {self.rows}, got {start} to {stop}.")
        touched = [index for index, (first, last) in enumerate(self._edges) if max(start, first) < min(stop, last)]
        parts = [part for index in touched for part in self._range(index, start, stop)]
        labels = [part.labels for part in parts if part.labels is not None]
        return torch.cat([part.features for part in parts]), torch.cat(labels) if labels else None

    def digest(self) -> str:
        """Return the SHA-256 over the content of all files."""
        digest = hashlib.sha256()
        for path, filesystem in {group.path: group.filesystem for group in self._groups}.items():
            with filesystem.open_input_stream(path) as stream:
                while content := stream.read(1 << 22):
                    digest.update(content)
        return digest.hexdigest()

    def _range(self, index: int, start: int, stop: int) -> "list[_Rows]":
        """Return the parts of a row group that lie in a range of the whole, read on from what was read last."""
        first, last = self._edges[index]
        begin, end = max(start, first), min(stop, last)
        held, self._held = self._held, None  # nothing is held after an error
        if held is None or held[0] != index or begin < held[1].first:
            batches = self._batches(index)
            held = index, next(batches), batches
        parts = [held[1]]
        while parts[-1].stop < end:
            parts.append(next(held[2]))
            parts = [part for part in parts if begin < part.stop]
        self._held = index, parts[-1], held[2]
        return [part.between(begin, end) for part in parts]

    def _batches(self, index: int) -> "Iterator[_Rows]":
        first = self._edges[index][0]
        for table in self._tables(index):
            features, labels = self._part(self._groups[index].path, table)
            yield _Rows(first, features, labels)
            first += len(features)

    def _tables(self, index: int) -> Iterator[Any]:
        """Yield the rows of a row group, a batch after the other, each decoded when it is asked for."""
        import pyarrow as pa
        from pyarrow import parquet

        group, columns = self._groups[index], self._columns
        try:
            with parquet.ParquetFile(
                group.path,
                filesystem=group.filesystem,
                page_checksum_verification=True,
                buffer_size=_BUFFER,
                pre_buffer=False,  # else the whole of a row group is, as it lies in the file
            ) as file:
                groups = [each.id for each in group.row_groups]
                for batch in file.iter_batches(_BATCH, row_groups=groups, columns=columns):
                    yield pa.Table.from_batches([batch]).select(columns or self._schema.names)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataFileError(f"{group.path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error

    def _part(self, place: str, table: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401  # of pyarrow
        is_first = self._columns is None
        columns = dict(zip(table.column_names, table.columns, strict=True))
        wanted = self._wanted if is_first else self.feature_names
        features, labels, self.feature_names = feature_table(place, columns, parquet_numbers, feature_names=wanted)
        if is_first:  # what is left out is told once, and read no more
            label = label_column(place, columns)
            self._columns = [*(self.feature_names or ["features"]), *([] if label is None else [label])]
            self.width = features.shape[1]
        elif features.shape[1] != self.width:
            raise DataFileError(
                f"{place}: `features` must be lists of floating-point numbers of one length, got lengths {self.width}, "
                f"{features.shape[1]}."
            )
        return features, labels


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Rows that follow each other, and the number of the first among all."""

    first: int
    features: Tensor
    labels: Tensor | None

    @property
    def stop(self) -> int:
        return self.first + len(self.features)

    def between(self, begin: int, end: int) -> "_Rows":
        rows = slice(max(begin - self.first, 0), end - self.first)
        labels = None if self.labels is None else self.labels[rows]
        return _Rows(max(begin, self.first), self.features[rows], labels)


def _common_schema(files: Sequence[Any], place: str) -> Any:  # noqa: ANN401  # as below
    """Return the schema of the first file, if the others have its columns in any order."""
    if not files:
        raise EmptyDataError(f"{place} holds no Parquet file: at least one sample is needed.")
    first = files[0].physical_schema
    wanted = dict(zip(first.names, first.types, strict=True))
    for file in files[1:]:
        found = dict(zip(file.physical_schema.names, file.physical_schema.types, strict=True))
        differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        if differing:
            name = differing[0]
            raise DataFileError(
                f"{place}: files must have the same columns of the same types. `{name}` is {found.get(name, 'missing')}"
                f" in {file.path}, and {wanted.get(name, 'missing')} in {files[0].path}. Write them alike, or read them"
                f" apart."
            )
    return first

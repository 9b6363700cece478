"""Features in Parquet files, one or a folder of them, on this machine or at an address, read a range at a time."""

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from opnp.data.addresses import opened_place
from opnp.data.samples import label_column
from opnp.data.tables import feature_table, parquet_numbers
from opnp.errors import DataFileError, EmptyDataError, OptionError, require_installed

__all__ = ["ParquetFeatures", "is_parquet", "parquet_dataset"]


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

    What is a feature is said by the rules of `read_feature_table`. The row group that was read last is held.

    Args:
        place: A path, or an address that Arrow knows, such as ``s3://bucket/folder``.
        feature_names: The columns of numbers to take, in this order, as ``detector.feature_names`` tells; None for all.

    Attributes:
        rows: Number of rows.
        width: Number of features of a row.
        is_labelled: Whether there is a label for each row.
        first_row: Number of the first row: 0.
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
        """Read what the files say of themselves, and the first row group."""
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
        self._schema = _common_schema(files, self.place)
        self._edges = list(pairwise(accumulate(lengths, initial=0)))
        self._held: tuple[int, Tensor, Tensor | None] | None = None
        self._wanted = feature_names
        self._columns: list[str] | None = None
        self.feature_names: tuple[str, ...] | None = None
        self.rows, self.first_row = sum(lengths), 0
        if self.rows == 0:
            raise EmptyDataError(f"{self.place} holds no rows: at least one sample is needed.")
        features, labels = self.read(0, 1)
        self.width, self.is_labelled = features.shape[1], labels is not None

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop` (not included), shape ``(rows, features)``, and their labels or None.

        Raises:
            OptionError: If there are no such rows.
            DataFileError: If a file is unreadable, or lacks values.

        """
        if not 0 <= start < stop <= self.rows:
            raise OptionError(f"Rows must lie in 0 to {self.rows}, got {start} to {stop}.")
        touched = [index for index, (first, last) in enumerate(self._edges) if first < stop and start < last]
        parts = [self._range(index, start, stop) for index in touched]
        labels = [targets for _, targets in parts if targets is not None]
        return torch.cat([features for features, _ in parts]), torch.cat(labels) if labels else None

    def digest(self) -> str:
        """Return the SHA-256 over the content of all files."""
        digest = hashlib.sha256()
        for path, filesystem in {group.path: group.filesystem for group in self._groups}.items():
            with filesystem.open_input_stream(path) as stream:
                while content := stream.read(1 << 22):
                    digest.update(content)
        return digest.hexdigest()

    def _range(self, index: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return the rows of a row group that lie in a range of the whole."""
        if self._held is None or self._held[0] != index:
            self._held = None
            self._held = (index, *self._group(index))
        _, features, labels = self._held
        first, last = self._edges[index]
        rows = slice(max(start, first) - first, min(stop, last) - first)
        return features[rows], None if labels is None else labels[rows]

    def _group(self, index: int) -> tuple[Tensor, Tensor | None]:
        import pyarrow as pa

        place, is_first = self._groups[index].path, self._columns is None
        try:
            table = self._groups[index].to_table(schema=self._schema, columns=self._columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataFileError(f"{place} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
        columns = dict(zip(table.column_names, table.columns, strict=True))
        wanted = self._wanted if is_first else self.feature_names
        features, labels, self.feature_names = feature_table(place, columns, parquet_numbers, feature_names=wanted)
        if is_first:  # what is left out is told once, and read no more
            label = label_column(place, columns)
            self._columns = [*(self.feature_names or ["features"]), *([] if label is None else [label])]
        return features, labels


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

"""Score files: one row an input, as CSV or Parquet by the file's ending."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from opnp.errors import DataFileError, MissingExtraError
from opnp.files import write_atomically

__all__ = ["require_score_file", "write_score_table"]


def write_score_table(path: str | os.PathLike[str], columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns of equal length; numbers in CSV are written so that reading them gives the same bits.

    Args:
        path: File to write, ending in ``.csv`` or ``.parquet``.
        columns: Values by column name, in the order of the columns.

    Raises:
        DataFileError: If the ending is another.
        MissingFileError: If the folder does not exist.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    path = Path(path)
    require_score_file(path)
    write_atomically(path, _as_csv(columns) if path.suffix.lower() == ".csv" else _as_parquet(columns))


def require_score_file(path: str | os.PathLike[str]) -> None:
    """Raise unless a file of this name can be a score file, by its ending and by what is installed.

    Raises:
        DataFileError: If it ends in neither ``.csv`` nor ``.parquet``.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    ending = Path(path).suffix.lower()
    if ending not in {".csv", ".parquet"}:
        raise DataFileError(f"{path}: a score file must end in .csv or .parquet, got {ending or 'no ending'!r}.")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("Parquet needs pyarrow: `pip install 'opnp[bench]'`. Or write a file ending in .csv.")


def _as_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode(errors="backslashreplace")


def _as_parquet(columns: Mapping[str, Sequence[object]]) -> bytes:
    import pyarrow as pa  # an extra: loaded only where it is used
    from pyarrow import parquet  # as above

    content = io.BytesIO()
    table = pa.table({name: [_valid(value) for value in values] for name, values in columns.items()})
    parquet.write_table(table, content, write_page_checksum=True)
    return content.getvalue()


def _valid(value: object) -> object:
    """Return a value, a text with escapes for what is no valid Unicode."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value

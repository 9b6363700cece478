"""Score files: one row an input, as CSV or Parquet by the file's ending."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from opnp.errors import DataFileError, MissingExtraError
from opnp.files import write_atomically

__all__ = ["write_score_table"]


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
    match path.suffix.lower():
        case ".csv":
            write_atomically(path, _as_csv(columns))
        case ".parquet":
            write_atomically(path, _as_parquet(columns))
        case _:
            raise DataFileError(
                f"{path}: a score file must end in .csv or .parquet, got {path.suffix or 'no ending'!r}."
            )


def _as_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _as_parquet(columns: Mapping[str, Sequence[object]]) -> bytes:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("Parquet needs pyarrow: `pip install 'opnp[bench]'`. Or write a file ending in .csv.")
    import pyarrow as pa  # an extra: loaded only where it is used
    from pyarrow import parquet  # as above

    content = io.BytesIO()
    parquet.write_table(pa.table({name: list(values) for name, values in columns.items()}), content)
    return content.getvalue()

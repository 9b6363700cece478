"""Score files, one row an input, as CSV or Parquet by the file's ending: written, and read back in order."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from opnp.errors import DataFileError, EmptyDataError, MissingExtraError
from opnp.files import existing_file, require_few_rows, write_atomically

__all__ = ["ScoreTable", "read_score_table", "require_score_file", "write_score_table"]

_COLUMNS = ("score", "p_value", "is_ood")
_TRUTHS = {"true": 1.0, "false": 0.0}


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
    write_atomically(path, (_as_csv if _ending(path) == ".csv" else _as_parquet)(columns))


def require_score_file(path: str | os.PathLike[str]) -> None:
    """Raise unless a file of this name can be a score file, by its ending and by what is installed.

    Raises:
        DataFileError: If it ends in neither ``.csv`` nor ``.parquet``.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    if _ending(Path(path)) == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("Parquet needs pyarrow: `pip install 'opnp[bench]'`. Or write a file ending in .csv.")


def _ending(path: Path) -> str:
    """Return ``.csv`` or ``.parquet``, raise if the name has another ending."""
    ending = path.suffix.lower()
    if ending not in {".csv", ".parquet"}:
        raise DataFileError(f"{path}: a score file must end in .csv or .parquet, got {ending or 'no ending'!r}.")
    return ending


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
    table = pa.table({name: list(map(_valid, values)) for name, values in columns.items()})
    parquet.write_table(table, content, write_page_checksum=True)
    return content.getvalue()


def _valid(value: object) -> object:
    """Return a value, a text with escapes for what is no valid Unicode."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


@dataclass(frozen=True, eq=False, slots=True)
class ScoreTable:
    """The columns of a score file that say something of the stream.

    Attributes:
        scores: Larger = more OOD, shape ``(rows,)``, float64, not NaN.
        p_values: Conformal p-values, shape ``(rows,)``, float64; None where the detector was not calibrated.
        is_ood: True = flagged, shape ``(rows,)``, bool; None where the detector was not calibrated.

    """

    scores: Tensor
    p_values: Tensor | None
    is_ood: Tensor | None


def read_score_table(path: str | os.PathLike[str]) -> ScoreTable:
    """Return scores, p-values and verdicts of a score file, to the bit as they were written.

    Args:
        path: File that ends in ``.csv`` or ``.parquet``, with a column `score` and perhaps `p_value` and `is_ood`;
            others are not looked at.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it cannot be read, has no scores, holds what is no number, or lacks values in some rows.
        EmptyDataError: If it has no rows.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    path = existing_file(path, content="scores")
    columns = (_csv_columns if _ending(path) == ".csv" else _parquet_columns)(path)
    if "score" not in columns:
        raise DataFileError(f"{path} has no column `score`: expected a file that `opnp score` wrote.")
    if len(columns["score"]) == 0:
        raise EmptyDataError(f"{path} holds no rows: at least one sample is needed.")
    scores = _numbers(path, "score", columns, _number)
    if scores is None:
        raise DataFileError(f"{path} holds no scores: the column `score` is empty.")
    p_values, is_ood = _numbers(path, "p_value", columns, _number), _numbers(path, "is_ood", columns, _truth)
    if p_values is not None and not 0 < float(p_values.min()) <= float(p_values.max()) <= 1:
        raise DataFileError(
            f"{path}: p-values lie above 0 and at most at 1, got {float(p_values.min()):g} to "
            f"{float(p_values.max()):g}. Score the data again.",
        )
    return ScoreTable(scores=scores, p_values=p_values, is_ood=None if is_ood is None else is_ood.bool())


def _csv_columns(path: Path) -> dict[str, Sequence[object]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            for name in _COLUMNS:
                if header.count(name) > 1:
                    raise DataFileError(f"{path} has {header.count(name)} columns called `{name}`: one can be read.")
            rows = []
            for row in lines:
                if len(row) not in (0, len(header)):
                    raise DataFileError(
                        f"{path}, line {lines.line_num}: expected {len(header)} values, got {len(row)}. Is it whole?",
                    )
                rows += [row] if row else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFileError(f"{path} cannot be read as a score file ({type(error).__name__}: {error}).") from error
    wanted = {name: header.index(name) for name in _COLUMNS if name in header}
    return {name: [row[place] or None for row in rows] for name, place in wanted.items()}


def _parquet_columns(path: Path) -> dict[str, Sequence[object]]:
    if find_spec("pyarrow") is None:
        raise MissingExtraError(f"{path} is a Parquet file, which needs pyarrow: `pip install 'opnp[bench]'`.")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Opened here: pyarrow takes no name that is not UTF-8.
        with path.open("rb") as content, parquet.ParquetFile(content, page_checksum_verification=True) as file:
            require_few_rows(file.metadata.num_rows, file_bytes=path.stat().st_size)
            names = [name for name in _COLUMNS if name in file.schema_arrow.names]
            table = file.read(columns=names)
            return {name: table[name].to_pylist() for name in names}
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
        raise DataFileError(f"{path} cannot be read as a score file ({type(error).__name__}: {error}).") from error


def _numbers(
    path: Path, name: str, columns: dict[str, Sequence[object]], number: Callable[[object], float]
) -> Tensor | None:
    """Return a column as float64, or None if it is not there or has no values."""
    values = columns.get(name, [])
    missing = [row for row, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise DataFileError(
            f"{path}: `{name}` has no value in {len(missing)} of {len(values)} rows ({_shown(missing)})."
        )
    found = []
    for row, value in enumerate(values):
        try:
            found.append(number(value))
        except (OverflowError, TypeError, ValueError):
            shown = repr(value)[:40]
            raise DataFileError(f"{path}: `{name}` of row {row} is {shown}, which is not a value of it.") from None
    column = torch.tensor(found, dtype=torch.float64, device="cpu")
    if bool(column.isnan().any()):
        raise DataFileError(f"{path}: `{name}` is NaN in {_shown(column.isnan().nonzero().flatten().tolist())}.")
    return column


def _number(value: object) -> float:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError


def _truth(value: object) -> float:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise TypeError


def _shown(rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")

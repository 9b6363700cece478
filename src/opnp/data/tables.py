"""Tables, one row an input, as CSV or Parquet by the file's ending: scores written and read back, features read."""

import csv
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opnp.data.samples import label_column, label_indices
from opnp.errors import ColumnWarning, DataFileError, EmptyDataError, MissingExtraError
from opnp.files import existing_file, require_few_rows, write_atomically

__all__ = [
    "TABLE_ENDINGS",
    "FeatureTable",
    "ScoreTable",
    "feature_table",
    "parquet_numbers",
    "read_feature_table",
    "read_score_table",
    "require_score_file",
    "score_table",
    "write_score_table",
]

TABLE_ENDINGS = (".csv", ".parquet")

_COLUMNS = ("score", "p_value", "is_ood", "predicted_class", "calibration_samples", "calibration_group")
_KIND = ("a score file", "a table of features")
_MOST = 2**53
"""Whole numbers below it are floats to the last digit."""
_TRUTHS = {"true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9.]*,[0-9]+\s*")
_NAMED = 5
"""Columns that a message names."""
_ROWS = "features"
"""Name of a column that holds whole rows, where it is one of lists; as a column of numbers it is like any other."""


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
    if ending not in TABLE_ENDINGS:
        raise DataFileError(f"{path}: a score file must end in .csv or .parquet, got {ending or 'no ending'!r}.")
    return ending


def _as_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode(errors="backslashreplace")


def _as_parquet(columns: Mapping[str, Sequence[object]]) -> bytes:
    from pyarrow import parquet  # an extra: loaded only where it is used

    content = io.BytesIO()
    parquet.write_table(score_table(columns), content, write_page_checksum=True)
    return content.getvalue()


def score_table(columns: Mapping[str, Sequence[object]]) -> Any:  # noqa: ANN401  # of a package without types
    """Return the columns of a score file as a table of Arrow."""
    import pyarrow as pa  # an extra, as above

    return pa.table({name: _valid(values) for name, values in columns.items()})


def _valid(values: Sequence[object]) -> Sequence[object]:
    """Return the values of a column, of texts with escapes for what is no valid Unicode; the first one tells."""
    if not (values and isinstance(values[0], str)):
        return values
    return [each.encode(errors="backslashreplace").decode() if isinstance(each, str) else each for each in values]


@dataclass(frozen=True, eq=False, slots=True)
class ScoreTable:
    """The columns of a score file that say something of the stream.

    Attributes:
        scores: Larger = more OOD, shape ``(rows,)``, float64, not NaN.
        p_values: Conformal p-values, shape ``(rows,)``, float64; None where the detector was not calibrated.
        is_ood: True = flagged, shape ``(rows,)``, bool; None where the detector was not calibrated.
        classes: Predicted classes, shape ``(rows,)``, int64; None where the file does not say.
        calibration_samples: How many calibration samples each p-value is of, shape ``(rows,)``, int64; or None.
        calibration_groups: Name of the group of classes that these are of, one a row; None unless calibrated by class.

    """

    scores: Tensor
    p_values: Tensor | None
    is_ood: Tensor | None
    classes: Tensor | None = None
    calibration_samples: Tensor | None = None
    calibration_groups: tuple[str, ...] | None = None


def read_score_table(path: str | os.PathLike[str]) -> ScoreTable:
    """Return scores, p-values and verdicts of a score file, to the bit as they were written.

    Args:
        path: File that ends in ``.csv`` or ``.parquet``, with a column `score` and perhaps `p_value`, `is_ood` and
            what these were judged by: `predicted_class`, `calibration_samples`, `calibration_group`. Others are not
            looked at.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it cannot be read, has no scores, holds what is no number, or lacks values in some rows.
        EmptyDataError: If it has no rows.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    path = existing_file(path, content="scores")
    columns = _csv_columns(path, _COLUMNS) if _ending(path) == ".csv" else _parquet_values(path)
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
    counts = [_numbers(path, name, columns, _count) for name in ("predicted_class", "calibration_samples")]
    classes, samples = (None if column is None else column.long() for column in counts)
    groups = columns.get("calibration_group", [])
    if len(named := [row for row, name in enumerate(groups) if name is not None]) not in (0, len(groups)):
        missing = sorted({*range(len(groups))} - {*named})
        raise DataFileError(f"{path}: `calibration_group` has no value in {len(missing)} rows ({_shown(missing)}).")
    return ScoreTable(
        scores=scores,
        p_values=p_values,
        is_ood=None if is_ood is None else is_ood.bool(),
        classes=classes,
        calibration_samples=samples,
        calibration_groups=tuple(map(str, groups)) if named else None,
    )


class FeatureTable(NamedTuple):
    """The features of a table.

    Attributes:
        features: Shape ``(rows, columns)``, float64, of a Parquet file of shorter floats those.
        labels: Class indices, shape ``(rows,)``, or None.
        feature_names: Names of the columns of `features`, in their order; None of whole rows, which have no names.

    """

    features: Tensor
    labels: Tensor | None
    feature_names: tuple[str, ...] | None


def read_feature_table(path: str | os.PathLike[str], *, feature_names: Sequence[str] | None = None) -> FeatureTable:
    """Return the columns of numbers of a table as features, and its labels or None.

    A column `label` or `labels` holds class indices. Columns of texts, dates and truth values are no features. Where a
    column `features` of a Parquet file holds lists of numbers, these are the rows, unless columns are named.

    Args:
        path: File that ends in ``.csv``, with a line of names at its head, or in ``.parquet``.
        feature_names: Names of the columns to take, in this order, as those of a detector's fit; None for all columns
            of numbers, in the order of the file.

    Returns:
        Features, labels and names.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If it cannot be read, has no column of numbers, lacks one that is named, or has one that lacks
            values, mixes numbers and texts or has decimal commas; if columns have no names, or one name; if lists are
            not of one length; or if labels are no class indices.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    Warns:
        ColumnWarning: If columns are left out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "t.csv"
        ...     write_score_table(path, {"width": [1.5, 0.0], "height": [2, 4], "label": [0, 1]})
        ...     features, labels, names = read_feature_table(path)
        ...     other_order = read_feature_table(path, feature_names=["height", "width"])
        >>> features, labels, names
        (tensor([[1.5000, 2.0000],
                [0.0000, 4.0000]], dtype=torch.float64), tensor([0, 1]), ('width', 'height'))
        >>> other_order.features
        tensor([[2.0000, 1.5000],
                [4.0000, 0.0000]], dtype=torch.float64)

    """
    path = existing_file(path, content="features")
    table = _csv_columns(path, None) if _ending(path) == ".csv" else _parquet_columns(path, None)
    read = _csv_numbers if _ending(path) == ".csv" else parquet_numbers
    return feature_table(path, table, read, feature_names=feature_names)


def feature_table(
    path: str | os.PathLike[str],
    columns: Mapping[str, Any],
    read: "Callable[[str | os.PathLike[str], str, Any], npt.NDArray[Any] | str]",
    *,
    feature_names: Sequence[str] | None = None,
) -> FeatureTable:
    """Return the features and labels among the columns of a table, or of a part of one: the rules are in one place.

    Args:
        path: Where they come from, for messages.
        columns: Columns by name, as `read` takes them.
        read: Returns a column as numbers, or, if it holds none, what it holds: `parquet_numbers`, say.
        feature_names: As for `read_feature_table`, and errors and warnings, too.

    """
    table = dict(columns)
    label = label_column(path, table)
    values = None if label is None else read(path, label, table.pop(label))
    if isinstance(values, str):
        raise DataFileError(f"{path}: `{label}` must hold the number of each row's class, counted from 0.")
    labels = None if values is None else label_indices(values, path=path)
    if feature_names is None and _ROWS in table and _is_of_lists(table[_ROWS]):
        rows = _stacked(table.pop(_ROWS), path)
        if table:
            _warn_of_left_out(path, [*table], f"as `{_ROWS}` holds whole rows")
        return FeatureTable(rows, labels, None)
    rows, names = _columns_of_numbers(path, table, read, feature_names)
    return FeatureTable(rows, labels, names)


def _columns_of_numbers(
    path: str | os.PathLike[str],
    table: Mapping[str, Any],
    read: "Callable[[str | os.PathLike[str], str, Any], npt.NDArray[Any] | str]",
    feature_names: Sequence[str] | None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the columns of numbers as a matrix, and their names."""
    if feature_names is not None:
        missing = [name for name in feature_names if name not in table]
        if missing:
            raise DataFileError(
                f"{path} lacks {_columns_text(missing)} of the {len(feature_names)} that the detector was fitted on. "
                f"Add what is missing, made as for the fit."
            )
    found = {name: read(path, name, table[name]) for name in (table if feature_names is None else feature_names)}
    numbers = {name: column for name, column in found.items() if not isinstance(column, str)}
    others = {name: kind for name, kind in found.items() if isinstance(kind, str)}
    if feature_names is not None and others:
        raise DataFileError(f"{path} must hold numbers in {_columns_text(others)}, as for the fit.")
    if not numbers:
        raise DataFileError(
            f"{path} holds no column of numbers: features are columns of numbers, one row a sample, or a column "
            f"`{_ROWS}` of lists of them."
        )
    if any(not name.strip() or name.startswith("__index_level_") for name in numbers):
        raise DataFileError(
            f"{path}: a column of numbers has no name, as the index of pandas has none. Write the table without it: "
            f"`index=False`."
        )
    dtype = np.result_type(*numbers.values())
    features = np.stack([*numbers.values()], axis=1).astype(dtype if dtype.kind == "f" else np.float64, copy=False)
    if others:
        shown = [f"{name} ({kind})" for name, kind in others.items()]
        _warn_of_left_out(path, shown, "which hold no numbers")
    elif feature_names is not None and len(table) > len(feature_names):
        further = [name for name in table if name not in found]
        _warn_of_left_out(path, further, "which the detector was not fitted on")
    return torch.from_numpy(features), tuple(numbers)


def _columns_text(names: Iterable[str]) -> str:
    """Return ``the column`` or ``the columns`` with the first five of the names."""
    names = [f"`{name}`" for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the column{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"


def _warn_of_left_out(path: str | os.PathLike[str], names: Sequence[str], reason: str) -> None:
    more = ", ..." if len(names) > _NAMED else ""
    warnings.warn(
        f"{path}: {len(names)} column{'s' if len(names) > 1 else ''} left out, {reason}: "
        f"{', '.join(names[:_NAMED])}{more}.",
        ColumnWarning,
        stacklevel=5,
    )


def _csv_numbers(path: str | os.PathLike[str], name: str, values: Sequence[object]) -> "npt.NDArray[Any] | str":
    """Return a column of a CSV file as float64, or what it holds if none of it is a number."""
    try:
        return np.asarray([float(str(value)) for value in values])
    except ValueError:
        is_number = [_is_number(value) for value in values]
    _require_decimal_points(path, name, (value for value, is_one in zip(values, is_number, strict=True) if not is_one))
    if any(is_number):
        row = is_number.index(False)
        raise DataFileError(
            f"{path}: `{name}` is no number in row {row} ({values[row] or 'nothing'!r:.40}), and one in others. Fill "
            f"in what is missing, as in training, or leave the column out."
        )
    if not any(values):
        return "empty"
    return "true or false" if all(str(value).lower() in _TRUTHS for value in values) else "text"


def _require_decimal_points(path: str | os.PathLike[str], name: str, values: Iterable[object]) -> None:
    """Raise if all of the values, and one at least, are numbers with a comma."""
    first = None
    for value in values:
        if not _DECIMAL_COMMA.fullmatch(str(value)):
            return
        first = first or value
    if first is not None:
        raise DataFileError(
            f"{path}: `{name}` holds numbers with a comma, such as {first!r:.40}: write them with a point and nothing "
            f"between thousands, as `to_csv` of pandas does after `read_csv(..., decimal=',')`."
        )


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def parquet_numbers(path: str | os.PathLike[str], name: str, column: Any) -> "npt.NDArray[Any] | str":  # noqa: ANN401  # of pyarrow
    """Return a column of a Parquet file as numbers, or its type if that is none of numbers.

    Raises:
        DataFileError: If it lacks values, or holds decimal commas.

    """
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            _require_decimal_points(path, name, (value.as_py() for value in column))
        return str(kind)
    if column.null_count:
        raise DataFileError(
            f"{path}: `{name}` has no value in {column.null_count} of {len(column)} rows. Fill them in, as in "
            f"training, or leave the column out."
        )
    numbers: npt.NDArray[Any] = (column.cast(pa.float64()) if pa.types.is_decimal(kind) else column).to_numpy()
    return numbers


def _is_of_lists(column: Any) -> bool:  # noqa: ANN401  # of pyarrow, or a list of CSV
    """Return whether a column holds lists of numbers."""
    kind = getattr(column, "type", None)
    if kind is None:
        return False
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind)  # tensors, as Ray Data writes them
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _stacked(column: Any, path: str | os.PathLike[str]) -> Tensor:  # noqa: ANN401  # of pyarrow
    """Return a column of lists of one length as a matrix."""
    import pyarrow as pa

    whole = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    if isinstance(whole.type, pa.BaseExtensionType):
        whole = whole.storage
    values = whole.flatten()
    if whole.null_count or values.null_count:
        raise DataFileError(
            f"{path}: `{_ROWS}` has no value in some places. Fill them in, as in training, or leave the rows out."
        )
    lengths = sorted(set(np.unique(whole.value_lengths().to_numpy(zero_copy_only=False)).tolist()))
    if len(lengths) != 1 or lengths == [0] or not pa.types.is_floating(values.type):
        raise DataFileError(
            f"{path}: `{_ROWS}` must be lists of floating-point numbers of one length, got {values.type} of lengths "
            f"{', '.join(map(str, lengths[:_NAMED])) or 'unknown, as there are no rows'}."
        )
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy()).reshape(len(whole), -1)


def _csv_columns(path: Path, wanted: Sequence[str] | None) -> dict[str, Sequence[object]]:
    """Return the columns of a CSV file of these names, None for all of them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            for name in dict.fromkeys(header if wanted is None else wanted):
                if header.count(name) > 1:
                    raise DataFileError(f"{path} has {header.count(name)} columns called `{name}`: one can be read.")
            if wanted is None and len(header) == 1 and (";" in header[0] or "\t" in header[0]):
                raise DataFileError(
                    f"{path}: the columns are not separated by commas. Write them so, and numbers with a point: "
                    f"`pandas.read_csv(path, sep=';', decimal=',').to_csv(new_path, index=False)`, say."
                )
            rows = []
            for row in lines:
                if len(row) not in (0, len(header)):
                    raise DataFileError(
                        f"{path}, line {lines.line_num}: expected {len(header)} values, got {len(row)}. Is it whole?",
                    )
                rows += [row] if row else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFileError(f"{path} cannot be read as {_KIND[wanted is None]} ({_text(error)}).") from error
    if wanted is None and header and all(map(_is_number, header)):
        raise DataFileError(f"{path}: the first line must name the columns, got numbers.")
    places = {name: place for place, name in enumerate(header) if wanted is None or name in wanted}
    return {name: [row[place] or None for row in rows] for name, place in places.items()}


def _parquet_columns(path: Path, wanted: Sequence[str] | None) -> "dict[str, Any]":
    """Return the columns of a Parquet file of these names, None for all of them, as pyarrow has them."""
    if find_spec("pyarrow") is None:
        raise MissingExtraError(f"{path} is a Parquet file, which needs pyarrow: `pip install 'opnp[bench]'`.")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Opened here: pyarrow takes no name that is not UTF-8.
        with path.open("rb") as content, parquet.ParquetFile(content, page_checksum_verification=True) as file:
            require_few_rows(file.metadata.num_rows, file_bytes=path.stat().st_size)
            names = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
            # By this thread alone: threads that read a file of Python's can outlive the interpreter and abort it.
            table = file.read(columns=names, use_threads=False)
            return {name: table[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
        raise DataFileError(f"{path} cannot be read as {_KIND[wanted is None]} ({_text(error)}).") from error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _parquet_values(path: Path) -> dict[str, Sequence[object]]:
    return {name: column.to_pylist() for name, column in _parquet_columns(path, _COLUMNS).items()}


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


def _count(value: object) -> float:
    found = _number(value)
    if not 0 <= found < _MOST or found != int(found):
        raise ValueError
    return found


def _truth(value: object) -> float:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise TypeError


def _shown(rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")

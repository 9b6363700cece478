"""Scores of one method on one model, from the file that a benchmark or the demo wrote."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnp.errors import DataFileError, MissingExtraError
from opnp.files import require_few_rows

__all__ = ["csv_scores", "parquet_scores"]

_ID_SETS = {"id_test": "test"}
"""Names of the ID set in files of the demo, and what it is called here."""

_Scores = dict[str, NDArray[np.float64]]


def parquet_scores(path: Path, *, model: str, method: str) -> Mapping[str, NDArray[np.float64]] | None:
    """Return scores by set from the columns model, set, method, score of a Parquet file, or None of none.

    Raises:
        DataFileError: If the file cannot be read, lacks a column, or holds NaN or -inf as a score.
        MissingExtraError: If pyarrow is not installed.

    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError(
            f"{path} is a Parquet file, which needs pyarrow, which is not installed: `pip install 'opnp[report]'`."
        )
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as file:  # opened here: pyarrow takes no name that is not UTF-8
            require_few_rows(parquet.read_metadata(file).num_rows, file_bytes=path.stat().st_size)
            table = parquet.read_table(
                file,
                columns=["set", "score"],
                filters=[("model", "==", model), ("method", "==", method)],
                page_checksum_verification=True,
            )
        names = table["set"].cast(pa.string()).to_numpy()
        scores = table["score"].cast(pa.float64()).to_numpy()
    except (OSError, KeyError, TypeError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DataFileError(f"{path} cannot be read as a file of scores ({type(error).__name__}: {error}).") from error
    return _by_set(names, scores, path)


def csv_scores(
    path: Path, *, model: str, method: str, only_model: str | None, only_method: str | None
) -> Mapping[str, NDArray[np.float64]] | None:
    """Return scores by set from a CSV file, or None of none.

    Args:
        path: File with the columns set and score, and model and method where there are several.
        model: Name of the model.
        method: Name of the row.
        only_model: The model that the file is about if it has no column of models.
        only_method: The method that the file is about if it has no column of methods.

    Returns:
        Scores by set, ``test`` first.

    Raises:
        DataFileError: If the file cannot be read, lacks a column, or holds NaN or -inf as a score.

    """
    names, scores = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in _rows(file):
                if row.get("model", only_model) == model and row.get("method", only_method) == method:
                    names.append(row["set"])
                    scores.append(float(row["score"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataFileError(f"{path} cannot be read as a file of scores ({type(error).__name__}: {error}).") from error
    return _by_set(np.array(names, dtype=object), np.array(scores, dtype=np.float64), path)


def _rows(lines: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Yield rows by name of the column; raise KeyError if a column that is needed is missing."""
    rows = csv.DictReader(_whole_lines(lines))
    missing = {"set", "score"} - set(rows.fieldnames or ())
    if missing:
        raise KeyError(min(missing))
    yield from rows


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, and raise ValueError at one without an end: a number that is cut short is still a number."""
    for line in lines:
        if not line.endswith(("\n", "\r")):
            message = "its last line is cut short"
            raise ValueError(message)
        yield line


def _by_set(names: NDArray[Any], scores: NDArray[np.float64], path: Path) -> _Scores | None:
    if len(scores) == 0:
        return None
    if not (scores > -np.inf).all():  # +inf is a score: the input lies beyond all that was seen
        raise DataFileError(f"{path} holds NaN or -inf as a score: score the data again, or leave these inputs out.")
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    found = {_ID_SETS.get(str(name), str(name)): scores[codes == code] for code, name in enumerate(distinct)}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "test", name))}

"""Folders of results, where what others wrote is not written over: records, scores, and the facts of a fit."""

import io
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from opnp.bench.gallery import detector_pictures
from opnp.core import flagged_rank
from opnp.detector import OPNP
from opnp.errors import DataFileError, NonFiniteError, require_installed
from opnp.files import write_atomically
from opnp.values.files import FIT_FILE, PICTURES_FILE, RECORD_FILES
from opnp.values.fit import FitRecord, TuningFigures
from opnp.values.pictures import ModelPictures, PictureRecord
from opnp.values.reading import Record, json_values

__all__ = [
    "ScoreBlock",
    "own_result_folder",
    "package_versions",
    "record_fit",
    "require_own_results",
    "require_parquet",
    "start_results",
    "stored_record",
    "write_pictures",
    "write_record",
    "write_scores",
]

_AnyRecord = TypeVar("_AnyRecord", bound=Record)


def own_result_folder(path: str | os.PathLike[str], *, files: Collection[str]) -> Path:
    """Return the folder to write some files into, made if it does not exist; raise as `require_own_results` does."""
    require_own_results(path, files=files)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_own_results(path: str | os.PathLike[str], *, files: Collection[str]) -> None:
    """Raise if writing some files into a folder would replace one that is not opnp's.

    Args:
        path: The folder; it need not exist.
        files: Names of what is to be written.

    Raises:
        DataFileError: If it is a file, or holds one of these names and no record of opnp.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "results.json").write_text("[0.93, 0.95]")
        ...     try:
        ...         require_own_results(folder, files=["results.json", "results.md"])
        ...     except DataFileError as error:
        ...         print(str(error).removeprefix(folder))
         holds results.json, which opnp did not write: name another folder, or move the file.

    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise DataFileError(f"{folder} is a file: name a folder for the results.")
    there = [name for name in files if (folder / name).exists()]
    own = {name for name in RECORD_FILES if there and _is_record(folder / name)}
    for name in there:
        if name not in own and (name in RECORD_FILES or not own):
            raise DataFileError(
                f"{folder} holds {name}, which opnp did not write: name another folder, or move the file."
            )


def _is_record(path: Path) -> bool:
    """Return whether a file is a record of opnp, of any version."""
    try:
        found = json_values(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, MemoryError):
        return False
    return isinstance(found, dict) and "record_version" in found


def stored_record(folder: Path, kind: type[_AnyRecord], *, files: Sequence[str]) -> _AnyRecord | None:
    """Return the record that a folder holds as the first of some files; None if it is unreadable, or one is missing."""
    if not all((folder / name).is_file() for name in files):
        return None
    try:
        return kind.from_json((folder / files[0]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataFileError):
        return None


def start_results(folder: Path, record: Record, *, files: Sequence[str]) -> None:
    """Write a record as the first of some files, and remove the others that an earlier run left.

    So all of them are there only where all are of one run, and the folder is known as opnp's from the first one on.
    """
    for name in files[1:]:
        (folder / name).resolve().unlink(missing_ok=True)  # a link stays, as it does when it is written to
    write_record(folder / files[0], record)


def write_record(path: Path, record: Record) -> None:
    """Write a record to its file."""
    write_atomically(path, (record.to_json() + "\n").encode())


def write_pictures(folder: Path, models: Iterable[ModelPictures]) -> None:
    """Write what figures are drawn from to a folder of results."""
    write_record(folder / PICTURES_FILE, PictureRecord(models=tuple(models)))


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, opnp, torch and more packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("opnp", "torch", *more)}


@dataclass(frozen=True, eq=False, slots=True)
class ScoreBlock:
    """Scores of one method on one set of one model.

    Attributes:
        model: Name of the model.
        set: Name of the file of features without its ending: ``test`` or ``ood_*``.
        method: Name of the row.
        index: Rows of the file, shape ``(samples,)``, int64.
        score: Larger = more OOD, shape ``(samples,)``, float64.

    """

    model: str
    set: str
    method: str
    index: Tensor
    score: Tensor


def require_parquet() -> None:
    """Raise if pyarrow is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    require_installed("The score file needs", "pyarrow", extra="bench")


def write_scores(path: str | os.PathLike[str], blocks: Sequence[ScoreBlock]) -> None:
    """Write blocks of scores one after another.

    Raises:
        MissingFileError: If the folder does not exist.

    """
    import pyarrow as pa
    from pyarrow import parquet

    lengths = torch.tensor([len(block.score) for block in blocks], dtype=torch.int64)

    def names(values: list[str]) -> Any:  # noqa: ANN401  # pyarrow ships no types
        distinct = list(dict.fromkeys(values))
        codes = torch.tensor([distinct.index(value) for value in values], dtype=torch.int32)
        return pa.DictionaryArray.from_arrays(codes.repeat_interleave(lengths).numpy(), pa.array(distinct, pa.string()))

    columns = {
        "model": names([block.model for block in blocks]),
        "set": names([block.set for block in blocks]),
        "method": names([block.method for block in blocks]),
        "index": torch.cat([torch.empty(0, dtype=torch.int64), *(block.index for block in blocks)]).numpy(),
        "score": torch.cat([torch.empty(0, dtype=torch.float64), *(block.score for block in blocks)]).numpy(),
    }
    content = io.BytesIO()
    parquet.write_table(pa.table(columns), content, compression="zstd", write_page_checksum=True)
    write_atomically(path, content.getvalue())


def record_fit(detector: OPNP, folder: str | os.PathLike[str], *, model: str, settings_text: str) -> FitRecord:
    """Write ``fit.json`` and ``pictures.json`` of a fitted detector to a folder, and return the record of the fit.

    Args:
        detector: The detector.
        folder: Where to write; it exists.
        model: What the detector is called in the report.
        settings_text: Its settings in words.

    Raises:
        DataFileError: If the folder holds one of these names and no record of opnp.
        NonFiniteError: If a calibration score is infinite.

    """
    require_own_results(folder, files=(FIT_FILE, PICTURES_FILE))
    folder, scores = Path(folder), detector.calibration_scores if detector.is_calibrated else None
    by = detector.calibrated_by if detector.is_calibrated else None
    flagged = None if scores is None or by else flagged_rank(len(scores), keep=detector.keep) / (len(scores) + 1)
    if scores is not None and (infinite := int((~scores.isfinite()).sum())):
        raise NonFiniteError(
            f"{infinite} of {len(scores)} calibration scores are infinite: their features are too large to be scored, "
            f"and no figure can be drawn of them. Calibrate without these samples."
        )
    weight, tuning, names = detector.original_head.weight, detector.tuning, TuningFigures.__struct_fields__
    classes, features = weight.shape
    record = FitRecord(
        model=model,
        classes=classes,
        features=features,
        training_samples=detector.samples,
        settings=detector.settings.to_json(),
        settings_text=settings_text,
        left_out=dict(detector.left_out),
        tuning=None if tuning is None else TuningFigures(*(getattr(tuning, name) for name in names)),
        keep=None if scores is None else detector.keep,
        threshold=None if scores is None or by else detector.threshold,
        expected_flagged=flagged,
        calibration_scores=() if scores is None else tuple(scores.tolist()),
        head_sha256=detector.head_digest,
        versions=package_versions(),
        calibrated_by=by,
    )
    write_record(folder / FIT_FILE, record)
    write_pictures(folder, [detector_pictures(detector, weight, model=model, method="OPNP")])
    return record

"""What a results folder holds, read into records and scores."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from opnp.bench.bench_record import BenchRecord
from opnp.bench.picture_record import PICTURES_FILE, ModelPictures, PictureRecord
from opnp.bench.record import Record
from opnp.bench.sweep_record import SweepRecord, SweptModel
from opnp.errors import DataFileError, MissingFileError
from opnp.files.json_text import json_values
from opnp.report.reported import (
    DEMO_MODEL,
    ReportedFigures,
    ReportedModel,
    ReportedRow,
    models_of_bench,
    models_of_demo,
)
from opnp.report.score_reading import csv_scores, parquet_scores

__all__ = [
    "DEMO_MODEL",
    "RESULT_FILES",
    "ReportedFigures",
    "ReportedModel",
    "ReportedRow",
    "Results",
    "read_results",
]

RESULT_FILES = ("results.json", "sweep.json", PICTURES_FILE, "fit.json")
"""Files one of which makes a folder a folder of results."""

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Results:
    """Records of a results folder; the scores beside them are read when they are asked for.

    Attributes:
        folder: The folder.
        bench: Record of a benchmark, or None.
        demo: Record of the demo, or None.
        sweep: Record of a sweep, or None.
        pictures: What figures of a head and its inputs are drawn from, or None.
        models: The models of benchmark or demo, with their methods.

    """

    folder: Path
    bench: BenchRecord | None = None
    demo: Record | None = None
    sweep: SweepRecord | None = None
    pictures: PictureRecord | None = None
    models: tuple[ReportedModel, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the models."""
        models: tuple[ReportedModel, ...] = ()
        if self.bench is not None:
            models = models_of_bench(self.bench)
        elif self.demo is not None:
            models = models_of_demo(self.demo)
        object.__setattr__(self, "models", models)

    def scores(self, model: str, method: str) -> Mapping[str, NDArray[np.float64]] | None:
        """Return the scores of one method on one model by set, ``test`` first, then ``ood_*``; larger = more OOD.

        Args:
            model: Name of the model.
            method: Name of the row.

        Returns:
            Scores by set, each of shape ``(samples,)``, or None where the folder has none of them.

        Raises:
            DataFileError: If the file of scores cannot be read, or holds NaN or -inf as a score.
            MissingExtraError: If pyarrow, which Parquet needs, is not installed.

        """
        if (path := self.folder / "scores.parquet").is_file():
            return parquet_scores(path, model=model, method=method)
        if (path := self.folder / "scores.csv").is_file():
            fallback = next((each.chosen for each in self.models if each.name == model), None)
            return csv_scores(path, model=model, method=method, only_model=self._only_model, only_method=fallback)
        return None

    def pictures_of(self, model: str) -> ModelPictures | None:
        """Return the pictures of a model: those of its name, or the only ones where there is only one model."""
        pictures = () if self.pictures is None else self.pictures.models
        found = next((each for each in pictures if each.model == model), None)
        if found is None and len(pictures) == 1 and self._only_model == model:
            return pictures[0]
        return found

    def swept(self, model: str) -> SweptModel | None:
        """Return the sweep of a model, or None if there is none of this name."""
        models = () if self.sweep is None else self.sweep.models
        return next((each for each in models if each.model == model), None)

    @property
    def _only_model(self) -> str | None:
        return self.models[0].name if len(self.models) == 1 else None


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Return what a folder of `opnp bench`, `opnp sweep`, `opnp fit` or `opnp demo` holds.

    Args:
        folder: The folder.

    Returns:
        Its records. Scores are not read yet.

    Raises:
        MissingFileError: If there is no such folder.
        DataFileError: If it holds no results, or a record in it cannot be read.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of results.")
    if not any((folder / name).is_file() for name in RESULT_FILES):
        raise DataFileError(
            f"{folder} holds no results: it must have one of {', '.join(RESULT_FILES)}. `opnp bench`, `opnp sweep` "
            f"and `opnp demo` write them into the folder that `--out` names; `opnp fit --report` makes its own page."
        )
    results = folder / "results.json"
    is_demo = results.is_file() and _is_demo(results)
    return Results(
        folder=folder,
        bench=None if is_demo else _read(results, BenchRecord.from_json),
        demo=_read(results, Record.from_json) if is_demo else None,
        sweep=_read(folder / "sweep.json", SweepRecord.from_json),
        pictures=_read(folder / PICTURES_FILE, PictureRecord.from_json),
    )


def _is_demo(path: Path) -> bool:
    try:
        values = json_values(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as JSON ({type(error).__name__}: {error}).") from error
    return isinstance(values, dict) and "models" not in values


def _read(path: Path, from_json: Callable[[str], _Read]) -> _Read | None:
    if not path.is_file():
        return None
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataFileError) as error:
        raise DataFileError(f"{path}: {error}") from error

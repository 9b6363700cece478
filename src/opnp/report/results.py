"""What a results folder holds, read into records and scores; and records that do not fit together."""

import csv
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from opnp.errors import DataFileError, MissingExtraError, MissingFileError, OpnpError
from opnp.files import require_few_rows
from opnp.values.bench import DEMO_MODEL, TUNED, BenchRecord, DataSource, DemoRecord, DemoRow, MethodRow, ModelResult
from opnp.values.figures import Nearness, means_by_side
from opnp.values.files import FIT_FILE, PICTURES_FILE, RECORD_FILES, RESULTS_FILE, SWEEP_FILE
from opnp.values.fit import FitRecord
from opnp.values.pictures import ModelPictures, PictureRecord
from opnp.values.reading import Record, Share, json_values
from opnp.values.sweep import SweepRecord, SweptModel

__all__ = [
    "ReportedModel",
    "ReportedRow",
    "Results",
    "Scores",
    "fitting_records",
    "models_of_bench",
    "models_of_demo",
    "read_results",
]

Scores = Mapping[str, NDArray[np.float64]]
"""Scores by set, ``test`` first, then ``ood_*``, each of shape ``(samples,)``; larger = more OOD."""

_CHOSEN = ("OPNP()", "OPNP(shaping=None)", "OPNP", *TUNED)
"""Rows of opnp as it is used, the first that ran first: of a benchmark, one by version 0.1, the demo and the paper."""
_BASELINES = ("Energy", "Energy, rest of test", "Energy (pytorch-ood)")

_Record = TypeVar("_Record", bound=Record)


class ReportedRow(MethodRow, frozen=True):
    """A row of a benchmark or of the demo; the first attributes are those of `MethodRow`.

    Attributes:
        accuracy: ID accuracy of the answers, by the original head; None without labels.
        accuracy_after: ID accuracy of the logits that the score was read off; None without labels.
        flagged_id: Share of ID test samples flagged at the calibrated threshold; None where it was not calibrated.
        threshold: That threshold, in units of the score; None where it was not calibrated.

    """

    accuracy: Share | None = None
    accuracy_after: Share | None = None
    flagged_id: Share | None = None
    threshold: float | None = None


class ReportedModel(ModelResult, frozen=True):
    """Every method on one model; the first attributes are those of `ModelResult`, sizes 0 where they are not recorded.

    Attributes:
        methods: The rows, in the order of the record.
        title: What was measured, in words; empty where the record does not say.

    """

    methods: tuple[ReportedRow, ...]
    title: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Samples by name of the data set: ``train``, ``test``, ``ood_*`` and what else the record names."""
        return {name: source.samples for name, source in self.data.items() if name != "head"}

    @property
    def chosen(self) -> ReportedRow | None:
        """The row of opnp as it is used, or None if there is none."""
        ran = {row.method: row for row in self.methods if row.status == "ok"}
        return next((ran[name] for name in _CHOSEN if name in ran), None)

    @property
    def baseline(self) -> ReportedRow | None:
        """The energy judged by the samples of the chosen row, by any where nothing was chosen; or None."""
        chosen = self.chosen
        ran = {row.method: row for row in self.methods if row.status == "ok"}
        found = (ran[name] for name in _BASELINES if name in ran)
        return next((row for row in found if chosen is None or row.split == chosen.split), None)


@dataclass(frozen=True, slots=True)
class Results:
    """Records of a results folder; the scores beside them are read when they are asked for, once.

    Attributes:
        folder: The folder.
        bench: Record of a benchmark, or None.
        demo: Record of the demo, or None.
        sweep: Record of a sweep, or None.
        pictures: What figures of a head and its inputs are drawn from, or None.
        fit: Record of a fit, or None.
        parts: The results of single models, where the folder holds folders of such; their records stand above as one.
        models: The models of benchmark or demo, with their methods.

    """

    folder: Path
    bench: BenchRecord | None = None
    demo: DemoRecord | None = None
    sweep: SweepRecord | None = None
    pictures: PictureRecord | None = None
    fit: FitRecord | None = None
    parts: "tuple[Results, ...]" = ()
    models: tuple[ReportedModel, ...] = field(init=False)
    _read_scores: dict[tuple[str, str], Scores | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Derive the models."""
        models: tuple[ReportedModel, ...] = ()
        if self.bench is not None:
            models = models_of_bench(self.bench)
        elif self.demo is not None:
            models = models_of_demo(self.demo)
        object.__setattr__(self, "models", models)

    def scores(self, model: str, method: str) -> Scores | None:
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
        part = next((each for each in self.parts if model in each.model_names), None)
        if part is not None:
            return part.scores(model, method)
        if (model, method) not in self._read_scores:
            self._read_scores[model, method] = self._scores_of_file(model, method)
        return self._read_scores[model, method]

    def _scores_of_file(self, model: str, method: str) -> Scores | None:
        if (path := self.folder / "scores.parquet").is_file():
            return _parquet_scores(path, model, method)
        if (path := self.folder / "scores.csv").is_file():
            only: dict[str, str | None] = {"model": self._only_model}
            chosen = next((each.chosen for each in self.models if each.model == model), None)
            only["method"] = None if chosen is None else chosen.method
            return _csv_scores(path, {"model": model, "method": method}, only)
        return None

    def scores_to_compare(self, model: ReportedModel) -> dict[str, Scores]:
        """Return scores by method: those of the energy, then of opnp as it is used, as far as they have ID scores.

        Args:
            model: One of the models.

        Raises:
            DataFileError: If the file of scores cannot be read.
            MissingExtraError: If pyarrow, which Parquet needs, is not installed.

        """
        methods = [row.method for row in (model.baseline, model.chosen) if row is not None]
        found = {method: self.scores(model.model, method) for method in methods}
        return {method: scores for method, scores in found.items() if scores is not None and "test" in scores}

    @property
    def model_names(self) -> list[str]:
        """Names of the models of results and sweep, and of pictures where there are no results; each once."""
        names = [model.model for model in self.models]
        names += [] if self.sweep is None else [model.model for model in self.sweep.models]
        if self.pictures is not None and not self.models:
            names += [model.model for model in self.pictures.models]
        return list(dict.fromkeys(names))

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
        return self.models[0].model if len(self.models) == 1 else None


def read_results(folder: str | os.PathLike[str], *, models: Collection[str] | None = None) -> Results:
    """Return what a folder of `opnp bench`, `opnp sweep`, `opnp fit` or `opnp demo` holds.

    Args:
        folder: The folder; or one of folders of benchmarks, one a model, which are read as one.
        models: Of a folder of benchmarks, the names of the folders to read; None for all.

    Returns:
        Its records. Scores are not read yet.

    Raises:
        MissingFileError: If there is no such folder.
        DataFileError: If it holds no results, or a record in it cannot be read.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of results.")
    if not any((folder / name).is_file() for name in RECORD_FILES):
        places = [each.parent for each in sorted(folder.glob(f"*/{RESULTS_FILE}"))]
        found = [read_results(place) for place in places if models is None or place.name in models]
        if parts := tuple(each for each in found if each.bench is not None):
            return _joined(folder, parts)
        raise DataFileError(
            f"{folder} holds no results: it must have one of {', '.join(RECORD_FILES)}. `opnp bench`, `opnp sweep` "
            f"and `opnp demo` write them into the folder that `--out` names; `opnp fit --report` makes its own page."
        )
    results = folder / RESULTS_FILE
    is_demo = results.is_file() and _is_demo(results)
    return Results(
        folder=folder,
        bench=None if is_demo else _read(results, BenchRecord),
        demo=_read(results, DemoRecord) if is_demo else None,
        sweep=_read(folder / SWEEP_FILE, SweepRecord),
        pictures=_read(folder / PICTURES_FILE, PictureRecord),
        fit=_read(folder / FIT_FILE, FitRecord),
    )


def _joined(folder: Path, parts: tuple[Results, ...]) -> Results:
    """Return the results of several models as those of one run."""
    sweeps = [each.sweep for each in parts if each.sweep is not None]
    pictures = [model for each in parts if each.pictures is not None for model in each.pictures.models]
    try:
        return Results(
            folder=folder,
            bench=BenchRecord.joined([each.bench for each in parts if each.bench is not None]),
            sweep=SweepRecord.joined(sweeps) if sweeps else None,
            pictures=PictureRecord(models=tuple(pictures)),
            parts=parts,
        )
    except DataFileError as error:
        raise DataFileError(f"{folder}: {error}") from error


@contextmanager
def fitting_records(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while the records of a folder are drawn into one message.

    A record is checked part by part when it is read. That its parts agree, as the points of a curve with its name or
    the edges of bins with their counts, is seen where they are used.

    Args:
        folder: The folder of results.

    Raises:
        DataFileError: If the records do not fit together.

    """
    try:
        yield
    except OpnpError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataFileError(
            f"{folder} holds records that do not fit together ({type(error).__name__}: {error}). Make them again."
        ) from error


def models_of_bench(record: BenchRecord) -> tuple[ReportedModel, ...]:
    """Return the models of a benchmark.

    Example:
        >>> models_of_bench(BenchRecord(seed=0, calibration_bins=15, versions={}, models=()))
        ()

    """
    models = []
    for model in record.models:
        rows = tuple(
            ReportedRow(
                **asdict(row),
                accuracy=None if row.before is None else row.before.accuracy,
                accuracy_after=None if row.after is None else row.after.accuracy,
            )
            for row in model.methods
        )
        models.append(ReportedModel(**asdict(model) | {"methods": rows}))
    return tuple(models)


def models_of_demo(record: DemoRecord) -> tuple[ReportedModel, ...]:
    """Return the one model of the demo.

    Example:
        >>> from opnp.values.figures import DetectionFigures
        >>> figures = DetectionFigures(fpr95=0.4, fpr95_ood_positive=0.5, auroc=0.9)
        >>> row = DemoRow("OPNP", {}, {"far": figures}, 1.0, 1.0, 0.05, -5.0)
        >>> [model] = models_of_demo(DemoRecord("digits", 0, 0.95, {"test": 253}, {}, (row,)))
        >>> model.chosen.method, model.chosen.far.auroc
        ('OPNP', 0.9)

    """
    places = sorted({place for method in record.methods for place in method.detection})
    nearness: dict[str, Nearness] = {place: "near" if place == "near" else "far" for place in places}
    rows = tuple(_demo_row(method, nearness) for method in record.methods)
    model = ReportedModel(
        model=DEMO_MODEL,
        classes=0,
        features=0,
        data={name: DataSource(samples=samples, sha256="") for name, samples in record.counts.items()},
        nearness=nearness,
        id_samples={"test": record.counts.get("test", 0)},
        validation_samples=record.counts.get("validation", 0),
        methods=rows,
        title=record.title,
    )
    return (model,)


def _demo_row(row: DemoRow, nearness: Mapping[str, Nearness]) -> ReportedRow:
    return ReportedRow(
        method=row.method,
        group="product" if row.method in _CHOSEN else "reference",
        source="opnp",
        citation="",
        settings=row.settings,
        split="test",
        status="ok",
        detection=row.detection,
        **means_by_side(row.detection, nearness),
        accuracy=row.accuracy,
        accuracy_after=row.pruned_accuracy,
        flagged_id=row.flagged_id,
        threshold=row.threshold,
    )


def _is_demo(path: Path) -> bool:
    try:
        values = json_values(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as JSON ({type(error).__name__}: {error}).") from error
    return isinstance(values, dict) and "models" not in values


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    """Return the record that a file holds, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return kind.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataFileError) as error:
        raise DataFileError(f"{path}: {error}") from error


def _parquet_scores(path: Path, model: str, method: str) -> Scores | None:
    """Return scores by set from the columns model, set, method, score of a Parquet file, or None of none."""
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


def _csv_scores(path: Path, wanted: Mapping[str, str], only: Mapping[str, str | None]) -> Scores | None:
    """Return scores by set from a CSV file, or None of none.

    Args:
        path: File with the columns set and score, and model and method where there are several.
        wanted: Names of the model and of the row.
        only: What the file is about where it has no such column.

    """
    names, scores = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(_whole_lines(file))
            if missing := {"set", "score"} - set(rows.fieldnames or ()):
                raise KeyError(min(missing))  # noqa: TRY301  # one message for all that a file may lack
            for row in rows:
                if all(row.get(column, only[column]) == name for column, name in wanted.items()):
                    names.append(row["set"])
                    scores.append(float(row["score"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataFileError(f"{path} cannot be read as a file of scores ({type(error).__name__}: {error}).") from error
    return _by_set(np.array(names, dtype=object), np.array(scores, dtype=np.float64), path)


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, and raise ValueError at one without an end: a number that is cut short is still a number."""
    for line in lines:
        if not line.endswith(("\n", "\r")):
            message = "its last line is cut short"
            raise ValueError(message)
        yield line


def _by_set(names: NDArray[Any], scores: NDArray[np.float64], path: Path) -> Scores | None:
    if len(scores) == 0:
        return None
    if not (scores > -np.inf).all():  # +inf is a score: the input lies beyond all that was seen
        raise DataFileError(f"{path} holds NaN or -inf as a score: score the data again, or leave these inputs out.")
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    found = {str(name): scores[codes == code] for code, name in enumerate(distinct)}
    if "id_test" in found:  # as the demo calls it
        found.setdefault("test", found.pop("id_test"))
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "test", name))}

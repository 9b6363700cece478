"""The benchmark: every method on the cached features of every model, and what it leaves behind.

All methods are fitted on ``train`` and judged by ``test`` against each ``ood_*``. `OPNP()` is calibrated on a random
part of ``test``; it, its members and the energy beside them are judged by the rest of it. What fails becomes a row that
says why.
"""

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from msgspec.structs import replace
from torch import Tensor

from opnp.adapters import require_pytorch_ood
from opnp.bench.features import IdSplit, ModelData, read_models, split_test
from opnp.bench.figures import CALIBRATION_BINS, classifier_figures, head_logits
from opnp.bench.gallery import detector_pictures, model_gallery
from opnp.bench.methods import (
    PRUNED_RATIOS,
    FittedMethod,
    Method,
    Part,
    available_methods,
    chosen_methods,
)
from opnp.bench.records import (
    ScoreBlock,
    own_result_folder,
    package_versions,
    require_own_results,
    require_parquet,
    start_results,
    stored_record,
    write_pictures,
    write_scores,
)
from opnp.bench.tables import results_markdown
from opnp.data import InputSet
from opnp.detector import Ratios
from opnp.detector.fit_pass import Progress, shown
from opnp.errors import NonFiniteError, OpnpError
from opnp.files import write_atomically
from opnp.model import is_out_of_memory
from opnp.values.bench import PRODUCT, TUNED, BenchRecord, MethodRow, ModelResult, PublishedFigures, Split
from opnp.values.figures import ClassifierFigures
from opnp.values.files import PICTURES_FILE, RESULTS_FILE
from opnp.values.pictures import ModelPictures

__all__ = ["BENCH_FILES", "Measurement", "ModelRun", "measured", "require_bench", "run_bench"]

Value = TypeVar("Value")

BENCH_FILES = (RESULTS_FILE, "results.md", "timings.json", PICTURES_FILE, "scores.parquet")
"""What `run_bench` writes, the record first."""

_SHORTAGE = "Memory ran out: "
"""How the reason of a row begins that may run another time, or elsewhere."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def run_bench(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: Iterable[str] | None = None,
    seed: int = 0,
    validation_samples: int | None = None,
    pruned: Ratios = PRUNED_RATIOS,
    near: Iterable[str] = (),
    ood: Iterable[str] | None = None,
    is_tunable: bool = True,
    inputs: Mapping[str, InputSet] | None = None,
    published: Sequence[PublishedFigures] = (),
    remark: str = "",
    is_resumed: bool = False,
    progress: Progress = None,
) -> BenchRecord:
    """Run methods on cached features, write the results to `out`, and return the record.

    `out` then holds ``results.json`` (the record: the same bytes each time), ``results.md`` (its tables),
    ``scores.parquet`` (every score), ``pictures.json`` (what figures of `OPNP()` are drawn from) and ``timings.json``
    (time and memory of every fit and of scoring).

    Args:
        features: A folder with ``head``, ``train``, ``test`` and ``ood_*``, each ``.safetensors``, or a folder of such
            folders, one a model. `cache_features` writes them.
        out: Where to write; made if it does not exist.
        methods: Groups (``reference``, ``baselines``, ``combinations``, ``product``) or families of methods; None for
            all. ODIN is among them where its scores stand beside the features.
        seed: Seed of the split of ``test`` for the product rows.
        validation_samples: How many rows of ``test`` the product rows are given for validation; None for 30 % to one
            significant digit, at most 2000.
        pruned: Ratios of the head that baselines are combined with.
        near: Names of the OOD sets that are near, such as other classes of the same kind of picture, for every model or
            as ``model:set`` for one; the others are far.
        ood: Names of the OOD sets to judge by; None for all that are there.
        is_tunable: Whether ratios are tuned on ``validation_ood`` where it is there.
        inputs: What the features of one model were made of, by set, for a gallery of images; None for no gallery.
        published: What others published of the model, to stand beside its rows; for one model alone.
        remark: What whoever reads the figures must know of them.
        is_resumed: Whether results of these data and settings that `out` holds already are kept. All are computed again
            where a method ran out of memory, or ODIN's row is not what is stored of ODIN now. Else rows that failed
            are kept as well, as they would fail again.
        progress: Wrapper of iterables that shows progress, one step a method.

    Returns:
        The record.

    Raises:
        MissingFileError: If a folder or file is missing.
        DataFileError: If a file does not fit the others, or `out` holds one of these names and no record of opnp.
        OptionError: If a method is unknown, or the validation part leaves nothing.
        MissingExtraError: If pyarrow, or a package that a chosen method needs, is not installed.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from opnp.data import write_features, write_head
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     write_head(folder / "head.safetensors", torch.eye(4))
        ...     for name, largest in {"train": 9.0, "test": 9.0, "ood_blank": 0.1}.items():
        ...         rows = largest * torch.eye(4)[torch.arange(100) % 4]
        ...         write_features(folder / f"{name}.safetensors", rows, labels=torch.arange(100) % 4)
        ...     record = run_bench(folder, folder / "results", methods=["energy"])
        >>> record.models[0].row("Energy").mean.auroc
        1.0

    """
    require_parquet()
    names, near = None if methods is None else tuple(methods), frozenset(near)
    models = read_models(features, near=near, ood=ood, is_tunable=is_tunable)
    chosen = {
        model.name: chosen_methods(
            available_methods(
                classes=model.classes,
                features=model.features,
                samples=len(model.train.features),
                odin=model.odin,
                pruned=pruned,
                is_tunable=model.validation_ood is not None,
            ),
            names,
        )
        for model in models
    }
    is_foreign = any(_is_foreign(each) for each in chosen.values())
    if is_foreign:
        require_pytorch_ood()
    runs = []
    for model in models:
        split = split_test(len(model.test.features), validation_samples=validation_samples, seed=seed)
        runs.append(ModelRun(model, split, seed=seed, near=near, inputs=inputs or {}, published=tuple(published)))
    out = own_result_folder(out, files=BENCH_FILES)
    versions = package_versions("numpy", "safetensors", *(["pytorch-ood", "scikit-learn"] if is_foreign else []))
    start = BenchRecord(
        seed=seed,
        calibration_bins=CALIBRATION_BINS,
        versions=versions,
        models=tuple(run.planned(chosen[run.model.name]) for run in runs),
        remark=remark,
    )
    kept = stored_record(out, BenchRecord, files=BENCH_FILES) if is_resumed else None
    if kept is not None and _asked(kept) == _asked(start):
        pairs = zip(runs, kept.models, strict=True)
        if all(run.is_final(chosen[each.model], each) for run, each in pairs):
            return kept
    record = replace(start, models=tuple(run.result(chosen[run.model.name], progress) for run in runs))
    timings = {run.model.name: run.timings for run in runs}
    start_results(out, record, files=BENCH_FILES)
    write_pictures(out, [each for run in runs for each in run.pictures])
    write_atomically(out / "results.md", results_markdown(record).encode())
    write_atomically(out / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    write_scores(out / "scores.parquet", [block for run in runs for block in run.scores])
    return record


def _asked(record: BenchRecord) -> tuple[object, ...]:
    """Return what of a record is known before anything has run."""
    rows = [[(row.method, row.citation, row.split) for row in model.methods] for model in record.models]
    return replace(record, models=tuple(replace(model, methods=()) for model in record.models)), rows


def require_bench(
    out: str | os.PathLike[str],
    methods: Iterable[str] | None,
    *,
    test_samples: int | None = None,
    validation_samples: int | None = None,
) -> None:
    """Raise what `run_bench` would raise of these arguments, before features are computed for it.

    Args:
        out: As for `run_bench`.
        methods: As for `run_bench`.
        test_samples: How many ID test samples there will be; None where that is not known yet.
        validation_samples: As for `run_bench`.

    Raises:
        DataFileError: If `out` holds one of the names to write and no record of opnp.
        OptionError: If a method is unknown, or the validation part leaves nothing.
        MissingExtraError: If pyarrow, or a package that a chosen method needs, is not installed.

    """
    require_own_results(out, files=BENCH_FILES)
    require_parquet()
    # The names of the methods do not depend on the sizes of the model.
    if _is_foreign(chosen_methods(available_methods(classes=10, features=100, samples=1000), methods)):
        require_pytorch_ood()
    if test_samples is not None:
        split_test(test_samples, validation_samples=validation_samples)


def _is_foreign(methods: Iterable[Method]) -> bool:
    """Return whether pytorch-ood must compute one of the rows."""
    return any(method.source == "pytorch-ood" and not method.is_stored for method in methods)


@dataclass(eq=False, slots=True)
class ModelRun:
    """One model, with the scores and times that its methods leave.

    Attributes:
        model: Features and head.
        split: Rows of ``test`` for validation, and the rest.
        seed: Seed of the global random state while a method runs; it is left as it was.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one.
        inputs: What the features were made of, by set, for a gallery; empty where that is not at hand.
        published: What others published of the model.
        scores: Scores of every method so far.
        pictures: What figures of the product's head, or else of a tuned one, are drawn from, once it has run.
        timings: Seconds and bytes of fit and of scoring by method; methods whose scores were stored have none.

    """

    model: ModelData
    split: IdSplit
    seed: int
    near: frozenset[str]
    inputs: Mapping[str, InputSet] = field(default_factory=dict)
    published: tuple[PublishedFigures, ...] = ()
    scores: list[ScoreBlock] = field(default_factory=list)
    pictures: list[ModelPictures] = field(default_factory=list)
    timings: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    _pictured: str = PRODUCT
    _before: dict[Split, ClassifierFigures | None] = field(default_factory=dict)

    def planned(self, methods: Sequence[Method]) -> ModelResult:
        """Return what is known before any method runs: every row is there, and has failed so far."""
        return ModelResult(
            **self.model.facts(self.near),
            id_samples={"test": len(self.model.test.features), "rest": len(self.split.rest)},
            validation_samples=len(self.split.validation),
            methods=tuple(method.planned for method in methods),
            published=self.published,
        )

    def result(self, methods: Sequence[Method], progress: Progress = None) -> ModelResult:
        """Return what came of the methods, in their order."""
        names = {method.name for method in methods}
        self._pictured = next((name for name in (PRODUCT, *TUNED) if name in names), PRODUCT)
        rows = tuple(self._row(method) for method in shown(methods, progress))
        return replace(self.planned(methods), methods=rows)

    def is_final(self, methods: Sequence[Method], result: ModelResult) -> bool:
        """Return whether the methods would leave these rows again: none for want of memory, ODIN's as it is stored."""
        for method, row in zip(methods, result.methods, strict=True):
            if row.reason.startswith(_SHORTAGE):
                return False
            if method.is_stored:
                try:
                    method.fit(self.model, self.split)
                    reason = ""
                except OpnpError as error:
                    reason = str(error)
                if (row.reason, row.settings) != (reason, method.settings):
                    return False
        return True

    def _row(self, method: Method) -> MethodRow:
        row = replace(method.planned, before=self._classifier_before(method.split))
        with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=[]):
            warnings.simplefilter("always")
            torch.manual_seed(self.seed)
            try:
                row = self._judged(method, row)
            except OpnpError as error:
                row = replace(row, reason=str(error))
            except Exception as error:  # noqa: BLE001  # a foreign method may fail as it likes: that is its result
                shortage = _SHORTAGE if is_out_of_memory(error) else ""
                row = replace(row, reason=f"{shortage}{method.source} raised {type(error).__name__}: {error}")
        return replace(row, notes=tuple(sorted({str(each.message) for each in caught})))

    def _judged(self, method: Method, row: MethodRow) -> MethodRow:
        """Return the row with its figures; scores, times and pictures are kept."""
        rows = self._rows(method.split)
        parts = [Part("test", rows, self.model.test.features[rows])]
        parts += [Part(f"ood_{name}", torch.arange(len(each)), each) for name, each in self.model.ood.items()]
        fitted, fit = measured(lambda: method.fit(self.model, self.split))
        (scores, logits), scoring = measured(lambda: _outputs(fitted, parts))
        if not method.is_stored:
            steps = {"fit": fit, "score": scoring}
            self.timings[method.name] = {
                f"{step}_{name}": value for step, took in steps.items() for name, value in took._asdict().items()
            }
        if method.name == self._pictured and (detector := fitted.detector) is not None:
            model = self.model
            pictures = detector_pictures(detector, model.head.weight, model=model.name, method=method.name)
            gallery = model_gallery(detector, model, self.inputs, rows=rows)
            self.pictures.append(replace(pictures, gallery=gallery))
        for part, each in zip(parts, scores, strict=True):
            self.scores.append(ScoreBlock(self.model.name, part.name, row.method, part.rows, each))
        return replace(
            row,
            settings=dict(fitted.chosen),
            status="ok",
            **self.model.figures(scores, self.near),
            after=self._classifier(logits, row.split),
        )

    def _rows(self, split: Split) -> Tensor:
        return torch.arange(len(self.model.test.features)) if split == "test" else self.split.rest

    def _classifier_before(self, split: Split) -> ClassifierFigures | None:
        """Return the original head's figures, taken once a split."""
        if split not in self._before:
            logits = head_logits(self.model.head, self.model.test.features[self._rows(split)])
            self._before[split] = self._classifier(logits, split)
        return self._before[split]

    def _classifier(self, logits: Tensor | None, split: Split) -> ClassifierFigures | None:
        labels = self.model.test.labels
        if logits is None or labels is None:
            return None
        return classifier_figures(logits, labels[self._rows(split)])


def _outputs(fitted: FittedMethod, parts: Iterable[Part]) -> tuple[list[Tensor], Tensor | None]:
    """Return the scores of each part, and the logits that those of the first were read off, or None.

    Raises:
        NonFiniteError: If a score is NaN.

    """
    scores: list[Tensor] = []
    first: Tensor | None = None
    for part in parts:
        found, logits = fitted.output(part)
        if bool(found.isnan().any()):
            raise NonFiniteError(f"{int(found.isnan().sum())} of {len(found)} scores on {part.name} are NaN.")
        first = logits if not scores else first
        scores.append(found)
    return scores, first


class Measurement(NamedTuple):
    """What a step took.

    Attributes:
        seconds: Wall-clock time.
        peak_bytes: Growth of the resident memory at its highest above the start; None where the system does not tell.

    """

    seconds: float
    peak_bytes: int | None


def measured(step: Callable[[], Value]) -> tuple[Value, Measurement]:
    """Return what a step returns, and what it took.

    Example:
        >>> value, took = measured(lambda: 1 + 1)
        >>> value, took.seconds >= 0
        (2, True)

    """
    before = _resident("VmRSS") if _forget_peak() else None
    start = time.perf_counter()
    value = step()
    seconds = time.perf_counter() - start
    peak = None if before is None else _resident("VmHWM")
    return value, Measurement(seconds, None if before is None or peak is None else max(0, peak - before))


def _forget_peak() -> bool:
    """Set the highest resident memory back to the present one; return whether the system could."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    """Return a field of the process's status in bytes, or None where there is no such thing."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024

"""The benchmark: every method on the cached features of every model, and what it leaves behind.

All methods are fitted on ``train`` and judged by ``test`` against each ``ood_*``. The product rows choose for
themselves, from ``train`` and a random part of ``test``; they are judged by the rest of it, and so is the energy beside
them.
"""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from opnp.adapters import require_pytorch_ood
from opnp.bench.baseline_methods import baseline_methods, combination_methods
from opnp.bench.bench_record import BenchRecord
from opnp.bench.feature_folder import ModelData, feature_folders, read_feature_folder
from opnp.bench.figures import CALIBRATION_BINS
from opnp.bench.methods import Method
from opnp.bench.model_run import ModelRun, Progress
from opnp.bench.odin_file import OdinScores
from opnp.bench.odin_method import odin_method
from opnp.bench.opnp_methods import PRUNED_RATIOS, product_methods, reference_methods
from opnp.bench.picture_record import PICTURES_FILE, PictureRecord
from opnp.bench.published import published_settings
from opnp.bench.result_folder import own_result_folder, require_own_results
from opnp.bench.score_file import require_parquet, write_scores
from opnp.bench.selection import chosen_methods
from opnp.bench.splitting import split_test
from opnp.bench.tables import results_markdown
from opnp.data import InputSet
from opnp.detector import Ratios
from opnp.files import write_atomically

__all__ = ["BENCH_FILES", "NEAR_SETS", "available_methods", "require_bench", "run_bench"]

NEAR_SETS = ("cifar10", "cifar100")
"""OOD sets close to the ID data: other classes of the same kind of picture."""
BENCH_FILES = ("results.json", "results.md", "timings.json", PICTURES_FILE, "scores.parquet")
"""What `run_bench` writes."""


def run_bench(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: Iterable[str] | None = None,
    seed: int = 0,
    validation_samples: int | None = None,
    pruned: Ratios = PRUNED_RATIOS,
    near: Iterable[str] = NEAR_SETS,
    ood: Iterable[str] | None = None,
    inputs: Mapping[str, InputSet] | None = None,
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
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one; the others are far.
        ood: Names of the OOD sets to judge by; None for all that are there.
        inputs: What the features of one model were made of, by set, for a gallery of images; None for no gallery.
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
    names = None if methods is None else tuple(methods)
    places = None if ood is None else tuple(ood)
    models = [read_feature_folder(folder, ood=places) for folder in feature_folders(features)]
    chosen = {model.name: chosen_methods(available_methods(model, pruned), names) for model in models}
    is_foreign = any(_is_foreign(each) for each in chosen.values())
    if is_foreign:
        require_pytorch_ood()
    near = frozenset(near)
    runs = []
    for model in models:
        split = split_test(len(model.test.features), validation_samples=validation_samples, seed=seed)
        runs.append(ModelRun(model, split, seed=seed, near=near, inputs=inputs or {}))
    out = own_result_folder(out, files=BENCH_FILES)
    record = BenchRecord(
        seed=seed,
        calibration_bins=CALIBRATION_BINS,
        versions=_versions(is_foreign=is_foreign),
        models=tuple(run.result(chosen[run.model.name], progress) for run in runs),
    )
    timings = {run.model.name: run.timings for run in runs}
    write_atomically(out / "results.json", (record.to_json() + "\n").encode())
    write_atomically(out / "results.md", results_markdown(record).encode())
    write_atomically(out / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    pictures = PictureRecord(models=tuple(each for run in runs for each in run.pictures))
    write_atomically(out / PICTURES_FILE, (pictures.to_json() + "\n").encode())
    write_scores(out / "scores.parquet", [block for run in runs for block in run.scores])
    return record


def require_bench(
    out: str | os.PathLike[str],
    methods: Iterable[str] | None,
    *,
    test_samples: int,
    validation_samples: int | None = None,
) -> None:
    """Raise what `run_bench` would raise of these arguments, before features are computed for it.

    Args:
        out: As for `run_bench`.
        methods: As for `run_bench`.
        test_samples: How many ID test samples there will be.
        validation_samples: As for `run_bench`.

    Raises:
        DataFileError: If `out` holds one of the names to write and no record of opnp.
        OptionError: If a method is unknown, or the validation part leaves nothing.
        MissingExtraError: If pyarrow, or a package that a chosen method needs, is not installed.

    """
    require_own_results(out, files=BENCH_FILES)
    require_parquet()
    # The names of the methods do not depend on the sizes of the model.
    available = _available(classes=10, features=100, samples=1000, odin=None, pruned=PRUNED_RATIOS)
    if _is_foreign(chosen_methods(available, methods)):
        require_pytorch_ood()
    split_test(test_samples, validation_samples=validation_samples)


def available_methods(model: ModelData, pruned: Ratios = PRUNED_RATIOS) -> list[Method]:
    """Return every method there is for a model, in the order of the tables."""
    sizes = {"classes": model.classes, "features": model.features, "samples": len(model.train.features)}
    return _available(**sizes, odin=model.odin, pruned=pruned)


def _available(*, classes: int, features: int, samples: int, odin: OdinScores | None, pruned: Ratios) -> list[Method]:
    settings = published_settings(classes=classes, features=features, samples=samples)
    return [
        *reference_methods(pruned),
        *baseline_methods(settings),
        odin_method(odin),
        *combination_methods(settings, pruned),
        *product_methods(),
    ]


def _is_foreign(methods: Iterable[Method]) -> bool:
    """Return whether pytorch-ood must compute one of the rows."""
    return any(method.source == "pytorch-ood" and not method.is_stored for method in methods)


def _versions(*, is_foreign: bool) -> dict[str, str]:
    packages = ["opnp", "torch", "numpy", "safetensors", *(["pytorch-ood", "scikit-learn"] if is_foreign else [])]
    return {"python": platform.python_version()} | {name: version(name) for name in packages}

"""The ablations of the paper on cached features: curves over every setting, and what they leave behind.

Every point is one pruned head, fitted on ``train`` and judged by ``test`` against each ``ood_*``. Nothing is chosen
here: a sweep shows what each setting would have given, known with hindsight only. `OPNP()` takes nothing from it.
"""

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version

from opnp.bench.feature_folder import ModelData, feature_folders, read_feature_folder
from opnp.bench.figures import CALIBRATION_BINS
from opnp.bench.model_run import Progress
from opnp.bench.protocol import NEAR_SETS
from opnp.bench.result_folder import own_result_folder
from opnp.bench.seeds import require_seed
from opnp.bench.sweep_curves import BASE_RATIOS, chosen_curves
from opnp.bench.sweep_model import ModelSweep
from opnp.bench.sweep_record import SweepBase, SweepRecord, SweepSettings, SweptModel
from opnp.bench.sweep_tables import sweep_markdown
from opnp.core import NeuronReading, Scope
from opnp.detector import Ratios, Settings
from opnp.files import write_atomically

__all__ = ["SWEEP_FILES", "run_sweep"]

SWEEP_FILES = ("sweep.json", "sweep.md")
"""What `run_sweep` writes."""


def run_sweep(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    curves: Iterable[str] | None = None,
    seed: int = 0,
    base: Ratios = BASE_RATIOS,
    scope: Scope = "layer",
    neuron: NeuronReading = "gradient",
    near: Iterable[str] = NEAR_SETS,
    progress: Progress = None,
) -> SweepRecord:
    """Try settings of the paper's method on cached features, write the results to `out`, and return the record.

    `out` then holds ``sweep.json`` (the record: the same bytes each time) and ``sweep.md`` (its tables).

    Args:
        features: A folder with ``head``, ``train``, ``test`` and ``ood_*``, each ``.safetensors``, or a folder of such
            folders, one a model.
        out: Where to write; made if it does not exist.
        curves: Curves or families of curves; None for all.
        seed: Seed of the first draw of training samples; the others count up from it.
        base: Ratios at which temperature, training samples and scores are varied.
        scope: Scope of the weight ranking there.
        neuron: Reading of the neuron sensitivity there.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one; the others are far.
        progress: Wrapper of iterables that shows progress, one step a point.

    Returns:
        The record. A setting that leaves nothing of a head is a point that says so.

    Raises:
        MissingFileError: If a folder or file is missing.
        DataFileError: If a file does not fit the others, or `out` holds one of these names and no record of opnp.
        OptionError: If a curve, the scope or the reading is unknown, or `seed` does not lie in 0 to 2^63 - 1.
        ShapeError: If a head has fewer than two classes.

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
        ...     record = run_sweep(folder, folder / "results", curves=["w_min"])
        >>> [(point.varied["w_min"], point.mean.auroc) for point in record.models[0].curve("w_min")][:2]
        [(0.0, 1.0), (0.05, 1.0)]

    References:
        Chen et al., NeurIPS 2023: the rows OPP, ONP and OPNP, and Figure 3.

    """
    require_seed(seed)
    chosen = chosen_curves(curves)
    options = Settings(ratios=base, scope=scope, neuron=neuron)
    near = frozenset(near)
    models = [read_feature_folder(folder) for folder in feature_folders(features)]
    out = own_result_folder(out, files=SWEEP_FILES)

    def swept(model: ModelData) -> SweptModel:
        start = SweepSettings(
            **asdict(base),
            scope=options.scope,
            neuron=options.neuron,
            temperature=options.temperature,
            score=options.score,
            training_samples=len(model.train.features),
            seed=None,
        )
        return ModelSweep(model, near).result(chosen, start, seed=seed, progress=progress)

    record = SweepRecord(
        seed=seed,
        base=SweepBase(**asdict(base), scope=options.scope, neuron=options.neuron),
        calibration_bins=CALIBRATION_BINS,
        versions=_versions(),
        curves=tuple(curve.about for curve in chosen),
        models=tuple(map(swept, models)),
    )
    write_atomically(out / "sweep.json", (record.to_json() + "\n").encode())
    write_atomically(out / "sweep.md", sweep_markdown(record).encode())
    return record


def _versions() -> dict[str, str]:
    packages = ("opnp", "torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}

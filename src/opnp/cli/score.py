"""``opnp score``: a detector's verdict on inputs of a model, or on cached features, one row a sample."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.model_options import (
    AutoBatch,
    DataPath,
    DeviceName,
    ImageSize,
    Means,
    ModelName,
    ModelOptions,
    Resize,
    StandardDeviations,
    Strict,
    WeightsFile,
    Workers,
)
from opnp.cli.options import DetectorFile, FeaturesFileOrNone, JsonFlag, RankTimeout
from opnp.cli.output import print_facts, print_json
from opnp.errors import NotCalibratedError, OptionError, UncalibratedWarning

if TYPE_CHECKING:
    from opnp.detector import OPNP

__all__ = ["score"]


def score(
    *,
    detector: DetectorFile,
    out: Annotated[Path, typer.Option(help="Score file to write, ending in .csv or .parquet.")],
    features: FeaturesFileOrNone = None,
    model: ModelName = None,
    data: DataPath = None,
    weights: WeightsFile = None,
    batch_size: Annotated[int | None, typer.Option(help="With --model: inputs a batch. Default: 64.")] = None,
    device: DeviceName = None,
    workers: Workers = 0,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Means = None,
    std: StandardDeviations = None,
    strict: Strict = False,
    auto_batch: AutoBatch = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add each member's p-value and its share of the score.")
    ] = False,
    rank_timeout: RankTimeout = 1800,
    json: JsonFlag = False,
) -> None:
    """Score inputs of a model or cached features, and write class, score, p-value and verdict of each sample.

    Larger score = more OOD. A detector that was never calibrated leaves p-value and verdict empty. With --model the
    table names the inputs, and leaves those out that cannot be read. Several processes score together:
    `torchrun --nproc-per-node 2 -m opnp score ...`; the table is in the order of the rows.
    """
    from opnp.cli.model_inputs import RunOptions, require_form
    from opnp.cli.out_checks import require_out_file
    from opnp.cli.score_tables import feature_scores, input_scores
    from opnp.data import require_score_file, write_score_table
    from opnp.detector import OPNP
    from opnp.distributed import launched, together

    of_model: dict[str, object] = {
        "--data": data,
        "--weights": weights,
        "--batch-size": batch_size,
        "--device": device,
        "--workers": workers,
        "--image-size": image_size,
        "--resize": resize,
        "--mean": mean,
        "--std": std,
        "--strict": strict,
        "--auto-batch": auto_batch,
    }
    require_form(features=features, model=model, of_features={}, of_model=of_model)
    require_score_file(out)
    with launched(device=device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_file(out)
            loaded = OPNP.load(detector)
            if explain and not loaded.is_calibrated:
                raise NotCalibratedError(
                    "`--explain` needs a calibrated detector: members are judged by calibration samples. Fit it with "
                    "`--validation`."
                )
        is_quiet = json or not ranks.is_first
        facts: dict[str, object] = {}
        if features is not None:
            table = feature_scores(loaded, features, ranks, is_explained=explain, is_quiet=is_quiet)
        elif model is not None and data is not None:
            options = ModelOptions(model, weights, image_size, resize, mean, std)
            run = RunOptions(options, data, device, batch_size, workers, strict, auto_batch)
            table, facts = input_scores(loaded, detector, run, ranks, is_explained=explain, is_quiet=is_quiet)
        else:
            raise OptionError("`--model` needs the inputs to score: give `--data PATH`.")
        with together(ranks):
            if ranks.is_first:
                write_score_table(out, table)
        if ranks.is_first:
            _tell(loaded, table, facts, out=out, json=json)


def _tell(detector: "OPNP", table: dict[str, list[object]], facts: dict[str, object], *, out: Path, json: bool) -> None:
    samples = len(table["score"])
    found: dict[str, object] = {"samples": samples, "out": str(out)} | facts
    if detector.is_calibrated:
        flagged = sum(map(bool, table["is_ood"]))
        found |= {"flagged": flagged, "flagged_share": flagged / samples, "keep": detector.keep}
    else:
        warnings.warn(
            "this detector is not calibrated: p_value and is_ood are left empty.", UncalibratedWarning, stacklevel=1
        )
    if json:
        print_json(found)
    else:
        print_facts(found)

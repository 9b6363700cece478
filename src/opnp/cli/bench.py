"""``opnp bench``: every method on some models, from features or from inputs, and the tables of what came of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.model_options import (
    AmpName,
    AmpOption,
    AutoBatch,
    BatchSize,
    ChannelsLast,
    DeviceName,
    DtypeName,
    FeaturesDtype,
    HeadName,
    ImageSize,
    LogitsPlace,
    Means,
    ModelOptions,
    Resize,
    StandardDeviations,
    Strict,
    WeightsFile,
    Workers,
    logits_place,
    named_paths,
)
from opnp.cli.options import JsonFlag
from opnp.cli.out_checks import require_out_folder
from opnp.cli.output import print_table, progress_bar
from opnp.cli.report_option import ReportFile, require_report, tell_report
from opnp.errors import OptionError

if TYPE_CHECKING:
    from opnp.values.bench import BenchRecord, MethodRow, ModelResult
    from opnp.values.figures import DetectionFigures

__all__ = ["bench"]


def bench(
    *,
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md, scores.parquet and timings.json.")],
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder with head, train, test and ood_*, each .safetensors; or a folder of such folders, one a model."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of --features: timm:NAME, torchvision:NAME, hf:FOLDER, or module:callable; with --id, --ood."
        ),
    ] = None,
    inside: Annotated[
        Path | None,
        typer.Option(
            "--id", help="ID test inputs, in any form that opnp cache takes; or a folder with train and test in it."
        ),
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Training inputs. Default: train in --id.")] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="OOD inputs; may be given several times."),
    ] = None,
    weights: WeightsFile = None,
    head: HeadName = None,
    logits: LogitsPlace = None,
    batch_size: BatchSize = 64,
    device: DeviceName = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Means = None,
    std: StandardDeviations = None,
    dtype: DtypeName = FeaturesDtype.float16,
    workers: Workers = 0,
    amp: AmpOption = AmpName.none,
    channels_last: ChannelsLast = False,
    strict: Strict = False,
    auto_batch: AutoBatch = False,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="What to run, separated by commas: reference, baselines, combinations, product, or names of methods. "
            "Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split of the ID test samples.")] = 0,
    validation_samples: Annotated[
        int | None,
        typer.Option(
            help="ID test samples that OPNP() is calibrated on; the product rows are judged by the rest. "
            "Default: 30 %, at most 2000."
        ),
    ] = None,
    rho_w_min: Annotated[float, typer.Option(help="Of the pruned head that baselines are combined with.")] = 0.3,
    rho_w_max: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.0,
    rho_o_min: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.0,
    rho_o_max: Annotated[float, typer.Option(help="As --rho-w-min.")] = 0.0,
    near: Annotated[
        str,
        typer.Option(help="OOD sets that are near, separated by commas; MODEL:SET for one model alone. Default: none."),
    ] = "",
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Compare OPNP with other detectors: all are fitted on train and judged by test and the OOD sets.

    From --features as they are, or from --model and its inputs: its features are cached in --out, once.
    """
    from opnp.bench import Forward, run_bench
    from opnp.cli.bench_images import cached_for_bench
    from opnp.detector import Ratios

    require_report(report, made=out)
    require_out_folder(out)
    chosen = None if methods is None else [name for text in methods for name in _listed(text)]
    pruned = Ratios(w_min=rho_w_min, w_max=rho_w_max, o_min=rho_o_min, o_max=rho_o_max)
    places, sets = None, None
    if features is None and model is not None:
        places = named_paths(ood or (), option="--ood")
        features, sets = cached_for_bench(
            ModelOptions(model, weights, image_size, resize, mean, std),
            inside=inside,
            train=train,
            outside=places,
            out=out / "features",
            methods=chosen,
            validation_samples=validation_samples,
            head=head,
            logits=logits_place(logits),
            device=device,
            batch_size=batch_size,
            dtype=dtype,
            workers=workers,
            forward=Forward(amp=amp.value, is_channels_last=channels_last),
            is_strict=strict,
            auto_batch=auto_batch,
            is_quiet=json,
        )
    elif features is None or model is not None:
        raise OptionError(
            "Give exactly one of `--features DIR`, for features that are there, and `--model NAME`, with `--id PATH` "
            "and `--ood NAME=PATH` for its inputs.",
        )
    else:
        data: dict[str, object] = {"--id": inside, "--train": train, "--ood": ood}
        network: dict[str, object] = {"--weights": weights, "--head": head, "--logits": logits, "--device": device}
        inputs: dict[str, object] = {"--image-size": image_size, "--resize": resize, "--mean": mean, "--std": std}
        run: dict[str, object] = {
            "--workers": workers or None,
            "--amp": None if amp is AmpName.none else amp,
            "--channels-last": channels_last or None,
            "--strict": strict or None,
            "--auto-batch": auto_batch or None,
        }
        _require_none(data | network | inputs | run)
    record = run_bench(
        features,
        out,
        methods=chosen,
        seed=seed,
        validation_samples=validation_samples,
        pruned=pruned,
        near=_listed(near),
        ood=places,
        inputs=sets,
        progress=progress_bar("benchmarking", is_quiet=json),
    )
    if json:
        tell_report(out, report, is_quiet=True)
        typer.echo(record.to_json())
        return
    _print_record(record)
    typer.echo("FPR95 / AUROC in %, ID positive; the best mean AUROC first.")
    typer.echo("Regret: the AUROC of the best published single score, chosen with hindsight, less the row's own.")
    typer.echo(f"Everything else is in {out}: start with results.md.")
    tell_report(out, report, is_quiet=False)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _require_none(options: Mapping[str, object]) -> None:
    """Raise if an option was given that says something of a model, while its features are there."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise OptionError(f"{', '.join(given)} belong to `--model`, and `--features` need no model: leave them out.")


def _print_record(record: "BenchRecord") -> None:
    for model in record.models:
        rows = [_cells(row, model.regret(row)) for row in model.best_first]
        columns = ["method", "far OOD", "near OOD", "all", "regret", "accuracy after", "ECE", "ECE after"]
        print_table(_title(model), columns, rows)
        for row in model.methods:
            if row.status == "failed":
                typer.echo(f"{row.method} did not run: {row.reason}", err=True)


def _title(model: "ModelResult") -> str:
    samples, places = model.id_samples["test"], len(model.nearness)
    return f"{model.model}: {model.classes} classes, {samples} ID samples, {places} OOD sets"


def _cells(row: "MethodRow", regret: float | None) -> list[str]:
    return [
        row.method,
        *(_pair(figures) for figures in (row.far, row.near, row.mean)),
        "" if regret is None else f"{100 * regret:.2f}",
        "" if row.after is None else f"{100 * row.after.accuracy:.2f}",
        "" if row.before is None else f"{100 * row.before.ece:.2f}",
        "" if row.after is None else f"{100 * row.after.ece:.2f}",
    ]


def _pair(figures: "DetectionFigures | None") -> str:
    return "" if figures is None else f"{100 * figures.fpr95:.2f} / {100 * figures.auroc:.2f}"

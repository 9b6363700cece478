"""``opnp cache``: the features that a model has of images or texts, in files that the other commands read."""

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
    checked_device,
    logits_place,
    named_paths,
)
from opnp.cli.options import JsonFlag, RankTimeout
from opnp.cli.out_checks import require_out_folder
from opnp.cli.output import print_json, print_table, progress_bar
from opnp.errors import OptionError

if TYPE_CHECKING:
    from opnp.bench import CacheReport
    from opnp.bench.origin import SetSource

__all__ = ["cache", "tell_unreadable"]

_INPUTS = (
    "folder of images (subfolders are classes), list of files (.txt, .csv), .safetensors, .npy, .npz, texts (.jsonl, "
    ".csv), or a data set of Hugging Face saved to disk"
)


def cache(
    *,
    model: Annotated[
        str, typer.Option(help="timm:NAME, torchvision:NAME, hf:FOLDER, or module:callable that returns the model.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the features.")],
    train: Annotated[Path | None, typer.Option(help=f"Training inputs: {_INPUTS}.")] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out ID inputs, as --train.")] = None,
    ood: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="OOD inputs, as --train; may be given several times.")
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
    odin: Annotated[
        bool,
        typer.Option(help="Compute the scores of ODIN for test and OOD images, which need the model, for opnp bench."),
    ] = True,
    strict: Strict = False,
    auto_batch: AutoBatch = False,
    rank_timeout: RankTimeout = 1800,
    json: JsonFlag = False,
) -> None:
    """Store what the last layer of a model takes in on images or texts; what is there of the same inputs is kept.

    --out then holds head, train, test and ood_NAME as .safetensors files, for opnp fit, tune, bench and sweep.
    Several processes share the inputs: `torchrun --nproc-per-node 2 -m opnp cache --no-odin ...`.
    """
    from opnp.bench import cache_features
    from opnp.data import open_inputs
    from opnp.distributed import launched, local_device, together

    paths = {"train": train, "test": test}
    paths |= {f"ood_{name}": path for name, path in named_paths(ood or (), option="--ood").items()}
    given = {name: path for name, path in paths.items() if path is not None}
    if not given:
        raise OptionError("Give inputs: at least one of `--train PATH`, `--test PATH` and `--ood NAME=PATH`.")
    with launched(device=device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_folder(out)
            place = checked_device(device)
            network, transform = ModelOptions(model, weights, image_size, resize, mean, std).opened()
            sets = {
                name: open_inputs(path, transform, is_strict=strict, is_labelled=not name.startswith("ood_"))
                for name, path in given.items()
            }
        report = cache_features(
            network,
            sets,
            out,
            name=model,
            weights=weights,
            head=head,
            logits=logits_place(logits),
            device=None if place is None else local_device(place),
            batch_size=batch_size,
            dtype=dtype.torch_dtype,
            is_odin_wanted=odin,
            workers=workers,
            amp=amp.value,
            is_channels_last=channels_last,
            auto_batch=auto_batch,
            distributed=not ranks.is_alone,
            progress=progress_bar("caching", is_quiet=json or not ranks.is_first),
        )
        if not ranks.is_first:
            return
        tell_unreadable({name: report.source.sets[name] for name in sets})
        if json:
            print_json(_facts(report) | {"out": str(out)})
            return
        _print_report(report, out)


def tell_unreadable(sets: "Mapping[str, SetSource]") -> None:
    """Print what could not be read, one line a set, on standard error."""
    from opnp.data import unreadable_summary

    for name, source in sets.items():
        if source.unreadable:
            typer.echo(f"opnp: {name}: {unreadable_summary(source.unreadable, total=source.total)}", err=True)


def _facts(report: "CacheReport") -> dict[str, object]:
    return {
        "model": report.source.model.model,
        "head": report.source.head,
        "dtype": report.source.model.dtype,
        "sets": {
            name: {
                "samples": report.source.sets[name].samples,
                "unreadable": len(report.source.sets[name].unreadable),
                "accuracy": report.source.sets[name].accuracy,
                "is_new": name in report.computed,
            }
            for name in (*report.kept, *report.computed)
        },
        "odin": [] if report.odin is None else sorted(report.odin.scores),
        "odin_reason": "" if report.odin is None else report.odin.about.reason,
    }


def _print_report(report: "CacheReport", out: Path) -> None:
    rows = []
    for name, source in report.source.sets.items():
        if name in report.computed or name in report.kept:
            accuracy = "" if source.accuracy is None else f"{100 * source.accuracy:.2f}"
            has_odin = report.odin is not None and name in report.odin.scores
            state = "new" if name in report.computed else "kept"
            rows.append([name, source.images, str(source.samples), accuracy, state, "yes" if has_odin else ""])
    print_table(
        f"{report.source.model.model}, head {report.source.head or '(the model itself)'}",
        ["set", "inputs", "samples", "accuracy %", "features", "ODIN"],
        rows,
    )
    if report.odin is not None and report.odin.about.reason:
        typer.echo(f"ODIN has no scores: {report.odin.about.reason}", err=True)
    typer.echo(f"Features are in {out}.")

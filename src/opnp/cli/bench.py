"""``opnp cache``, ``opnp bench`` and ``opnp sweep``: features of a model, methods on them, and the paper's curves."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from opnp.cli.options import (
    CacheOptions,
    FeaturesFolder,
    JsonFlag,
    ModelName,
    ModelNames,
    ModelOptions,
    OodPaths,
    RankTimeout,
    RatioOptions,
    ReportFile,
    RunOptions,
    ValidationOod,
    detector_option,
    given_options,
    head_layer_name,
    input_option,
    listed,
    model_option,
    ood_paths,
    require_form,
    require_out_folder,
    require_report,
    running_option,
    tell_report,
)
from opnp.cli.output import print_json, print_table, progress_bar
from opnp.errors import OptionError
from opnp.values.settings import RANK_TIMEOUT, NeuronReading, Scope

if TYPE_CHECKING:
    from opnp.bench import CacheReport
    from opnp.cli.running import OpenedModel
    from opnp.data import InputSet
    from opnp.values.bench import BenchRecord, MethodRow, ModelResult
    from opnp.values.figures import DetectionFigures
    from opnp.values.protocols import Protocol
    from opnp.values.sweep import SweepCurve, SweepPoint, SweepRecord, SweptModel

_INPUTS = (
    "folder of images (subfolders are classes), list of files (.txt, .csv), .safetensors, .npy, .npz, texts (.jsonl, "
    ".csv), or a data set of Hugging Face saved to disk"
)

# --------------------------------------------------------------------------------------------------------------- cache


def cache(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the features.")],
    train: Annotated[Path | None, input_option(help=f"Training inputs: {_INPUTS}.")] = None,
    test: Annotated[Path | None, input_option(help="Held-out ID inputs, as --train.")] = None,
    ood: OodPaths = None,
    val_ood: ValidationOod = None,
    model: ModelName,
    options: CacheOptions,
    odin: Annotated[
        bool,
        running_option(
            help="Compute the scores of ODIN for test and OOD images, which need the model, for opnp bench."
        ),
    ] = True,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    json: JsonFlag = False,
) -> None:
    """Store what the last layer of a model takes in on images or texts; what is there of the same inputs is kept.

    --out then holds head, train, test and ood_NAME as .safetensors files, for opnp fit, tune, bench and sweep.
    Several processes share the inputs: `torchrun --nproc-per-node 2 -m opnp cache --no-odin ...`.
    """
    from opnp.distributed import launched, together

    outside = {f"ood_{name}": path for name, path in ood_paths(ood).items()}
    given = {"train": train, "test": test, **outside, "validation_ood": val_ood}
    paths = {name: path for name, path in given.items() if path is not None}
    if not paths:
        raise OptionError("Give inputs: at least one of `--train PATH`, `--test PATH` and `--ood NAME=PATH`.")
    with launched(device=options.device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_folder(out)
            opened, sets = _opened(model, options, paths)
        is_quiet = json or not ranks.is_first
        report = _cached(
            opened, sets, out, options, name=model, has_odin=odin, is_alone=ranks.is_alone, is_quiet=is_quiet
        )
        if not ranks.is_first:
            return
    _tell_unreadable(report, sets)
    if json:
        print_json(_facts(report) | {"out": str(out)})
        return
    _print_cached(report)
    typer.echo(f"Features are in {out}.")


def _opened(model: str, options: CacheOptions, paths: Mapping[str, Path]) -> "tuple[OpenedModel, dict[str, InputSet]]":
    """Return a model and the inputs it is to be run on; those of OOD sets have no labels."""
    from opnp.cli.running import OpenedModel

    opened = OpenedModel.of(model, options)
    return opened, {name: opened.inputs(path, is_labelled=name in ("train", "test")) for name, path in paths.items()}


def _cached(
    opened: "OpenedModel",
    sets: "Mapping[str, InputSet]",
    out: Path,
    options: CacheOptions,
    *,
    name: str,
    has_odin: bool,
    is_replacing: bool = False,
    is_alone: bool = True,
    is_quiet: bool,
) -> "CacheReport":
    """Compute the features of inputs that are not in a folder yet, and return what it holds then."""
    import torch

    from opnp.bench import cache_features

    return cache_features(
        opened.model,
        sets,
        out,
        name=name,
        weights=options.weights_file,
        head=head_layer_name(options.head_layer, old=options.head),
        logits=options.logits_place,
        device=opened.device,
        batch_size=options.inputs_a_batch,
        dtype=getattr(torch, options.dtype),
        is_odin_wanted=has_odin,
        is_replacing=is_replacing,
        workers=options.workers,
        amp=options.amp,
        is_channels_last=options.channels_last,
        auto_batch=options.auto_batch,
        distributed=not is_alone,
        progress=progress_bar("caching", is_quiet=is_quiet),
    )


def _tell_unreadable(report: "CacheReport", names: Sequence[str] | Mapping[str, object]) -> None:
    """Print what could not be read, one line a set, on standard error."""
    from opnp.data import unreadable_summary

    for name in names:
        source = report.source.sets[name]
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


def _print_cached(report: "CacheReport") -> None:
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
        typer.echo(f"ODIN did not score every set: {report.odin.about.reason}", err=True)


# --------------------------------------------------------------------------------------------------------------- bench


def bench(
    *,
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md, scores.parquet and timings.json.")],
    features: Annotated[Path | None, FeaturesFolder] = None,
    inside: Annotated[
        Path | None,
        input_option(
            "--id",
            help="With --model: ID test inputs, in any form that opnp cache takes; or a folder with train and test in "
            "it.",
        ),
    ] = None,
    train: Annotated[Path | None, input_option(help="With --model: training inputs. Default: train in --id.")] = None,
    ood: OodPaths = None,
    val_ood: ValidationOod = None,
    near: Annotated[
        str | None,
        input_option(help="OOD sets that are near, separated by commas; MODEL:SET for one model alone. Default: none."),
    ] = None,
    model: ModelNames = None,
    models: Annotated[
        Path | None,
        model_option(metavar="FILE", help="Models as --model takes them, one a line, each perhaps with its weights."),
    ] = None,
    protocol: Annotated[
        str | None,
        input_option(
            metavar="NAME|FILE", help="Instead of all of these: paper, or a JSON file that names models and data."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        input_option(help="Folder that paths of --protocol, or of inputs, lie below. Default: the current one."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        detector_option(
            help="What to run, separated by commas: reference, baselines, combinations, tuned, product, or names of "
            "methods. Default: all; tuned ones where there is --val-ood."
        ),
    ] = None,
    validation_samples: Annotated[
        int | None,
        detector_option(
            help="ID test samples that OPNP() is calibrated and ratios are tuned on; such rows are judged by the rest. "
            "Default: 30 %, at most 2000."
        ),
    ] = None,
    pruned: RatioOptions,
    options: CacheOptions,
    seed: Annotated[int, running_option(help="Seed of the split of the ID test samples.")] = 0,
    dry_run: Annotated[
        bool, running_option("--dry-run", help="Print models, data and settings, and what is missing; run nothing.")
    ] = False,
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Compare OPNP with other detectors: all are fitted on train and judged by test and the OOD sets.

    From --features as they are, or from --model and its inputs: its features are cached in --out, once. The --rho
    options are those of the pruned head that baselines are combined with: --rho-w-min 0.3, and nothing else.

    Several models, by --model given several times, --models or --protocol, have a folder each in --out; a run that was
    stopped goes on where it was, and `opnp report` makes one page of all.
    """
    from opnp.bench import PRUNED_RATIOS, listed_models, protocol_of_models, run_bench
    from opnp.cli.protocols import ProtocolRun

    require_report(report, made=out)
    require_out_folder(out)
    chosen = None if methods is None else listed(methods)
    ratios, is_near = pruned.over(PRUNED_RATIOS), listed([near or ""])
    weights = "" if options.weights_file is None else str(options.weights_file)
    names = [*((each, weights) for each in model or ()), *([] if models is None else listed_models(models))]
    is_one = len(names) == 1 and models is None
    data = {"--id": inside, "--train": train, "--ood": ood, "--val-ood": val_ood}
    root, plan, places, inputs = data_root or Path(), None, None, None
    if protocol is not None:
        given = {"--features": features, "--model": model, "--models": models, "--near": near, **data}
        plan = _protocol(protocol, given, options, methods=chosen, validation_samples=validation_samples)
    else:
        of_model = {**data, "--data-root": data_root, "--dry-run": dry_run or None, **given_options(options)}
        sources = "`--id PATH` and `--ood NAME=PATH`"
        require_form(features=features, model=names or None, inputs=sources, of_model=of_model)
    if names:
        places = ood_paths(ood)
        paths = _bench_paths(root, inside, train, places, val_ood)
        if weights and not is_one:
            raise OptionError("`--weights` is for one model: name those of several in `--models FILE`.")
        plan = protocol_of_models(
            names, sets=paths, near=is_near, methods=chosen, validation_samples=validation_samples
        )
        root = Path()
        is_near = [*plan.models[0].near]
    if plan is not None and (dry_run or not is_one):
        run = ProtocolRun(
            protocol=plan, root=root, out=out, options=options, pruned=ratios, seed=seed, is_quiet=json, report=report
        )
        run.told() if dry_run else run.run()
        return
    if features is None:
        [(name, _)] = names
        features, inputs = features_for_bench(
            name, paths, out, options, methods=chosen, validation_samples=validation_samples, is_quiet=json
        )
    record = run_bench(
        features,
        out,
        methods=chosen,
        seed=seed,
        validation_samples=validation_samples,
        pruned=ratios,
        near=is_near,
        ood=places,
        is_tunable=not names or val_ood is not None,
        inputs=inputs,
        progress=progress_bar("benchmarking", is_quiet=json),
    )
    if json:
        typer.echo(record.to_json())
    else:
        _print_record(record)
        typer.echo("FPR95 / AUROC in %, ID positive; the best mean AUROC first.")
        typer.echo("Regret: the AUROC of the best published single score, chosen with hindsight, less the row's own.")
        typer.echo(f"Everything else is in {out}: start with results.md.")
    tell_report(out, report, is_quiet=json)


def _protocol(
    name: str,
    given: Mapping[str, object],
    options: CacheOptions,
    *,
    methods: list[str] | None,
    validation_samples: int | None,
) -> "Protocol":
    """Return the protocol of a name or file, with methods and validation samples of the command line if given there."""
    from opnp.bench import read_protocol

    how = [f"--{each.name.replace('_', '-')}" for each in fields(RunOptions) if each not in fields(ModelOptions)]
    of_model = given_options(options, but=[*how, "--dtype", "--amp", "--channels-last"])
    wrong = [option for option, value in {**given, **of_model}.items() if value is not None]
    if wrong:
        raise OptionError(f"{', '.join(wrong)} cannot go with `--protocol`, which says it for each of its models.")
    found = read_protocol(name)
    return replace(
        found,
        methods=found.methods if methods is None else tuple(methods),
        validation_samples=found.validation_samples if validation_samples is None else validation_samples,
    )


def _bench_paths(
    root: Path, inside: Path | None, train: Path | None, ood: Mapping[str, Path], val_ood: Path | None
) -> dict[str, Path]:
    """Return the inputs that a model is judged by, and those that it was trained on, by the names of their sets."""
    from opnp.data import train_and_test

    if inside is None or not ood:
        missing = "`--id PATH`" if inside is None else "`--ood NAME=PATH`"
        raise OptionError(f"`--model` needs inputs to judge by: give {missing}.")
    inside = root / inside
    if train is None:
        if not inside.is_dir():
            raise OptionError(
                f"`--id` {inside} holds test inputs alone: give the training inputs with `--train PATH`, or an `--id` "
                f"folder with train and test (or val) in it.",
            )
        train, inside = train_and_test(inside)
    else:
        train = root / train
    tuning = {} if val_ood is None else {"validation_ood": root / val_ood}
    outside = {f"ood_{name}": root / path for name, path in ood.items()}
    return {"train": train, "test": inside, **outside, **tuning}


def features_for_bench(
    model: str,
    paths: Mapping[str, Path],
    out: Path,
    options: CacheOptions,
    *,
    name: str = "",
    results: Path | None = None,
    most: Mapping[str, int] | None = None,
    methods: Sequence[str] | None,
    validation_samples: int | None,
    is_quiet: bool,
) -> "tuple[Path, dict[str, InputSet]]":
    """Return the folder in `out` that holds a model's features, as ``opnp cache`` leaves it, and the model's inputs.

    Features of another model of this name are replaced. What would keep the benchmark from running is raised first.
    The folder has the name of the model unless another is given; results go into `out` unless elsewhere; `most` has
    the number of inputs of a set that are taken, by name of the set.
    """
    from opnp.adapters import folder_name
    from opnp.bench import includes_odin, require_bench, spread_inputs

    opened, sets = _opened(model, options, paths)
    sets = {each: spread_inputs(inputs, (most or {}).get(each)) for each, inputs in sets.items()}
    require_bench(results or out, methods, test_samples=len(sets["test"]), validation_samples=validation_samples)
    folder = out / "features" / (name or folder_name(model))
    report = _cached(
        *(opened, sets, folder, options),
        name=model,
        has_odin=includes_odin(methods),
        is_replacing=True,
        is_quiet=is_quiet,
    )
    _tell_unreadable(report, sets)
    if not is_quiet:
        states = {"computed": report.computed, "kept": report.kept}
        text = "; ".join(f"{', '.join(names)} {state}" for state, names in states.items() if names)
        typer.echo(f"Features in {folder}: {text}.", err=True)
    for each_set, inputs in sets.items():  # of features that were kept, their record knows what could not be read
        reasons = dict(report.source.sets[each_set].unreadable)
        for row, each in enumerate(inputs.names if reasons else ()):
            if each in reasons:
                inputs.skip(row, reasons[each])
    return folder, sets


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


# --------------------------------------------------------------------------------------------------------------- sweep


def sweep(
    *,
    features: Annotated[Path, FeaturesFolder],
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and sweep.md.")],
    curves: Annotated[
        list[str] | None,
        detector_option(
            help="What to vary, separated by commas: parts, paper, ratios, pairs, temperature, samples, scores, or "
            "names of curves such as w_min-class. Default: all."
        ),
    ] = None,
    seed: Annotated[int, running_option(help="Seed of the first draw of training samples.")] = 0,
    base: RatioOptions,
    scope: Annotated[Scope, detector_option(help="Ranking of the weights at the base.")] = "layer",
    neuron: Annotated[
        NeuronReading, detector_option(help="Reading of the neuron sensitivity at the base.")
    ] = "gradient",
    near: Annotated[
        str | None, input_option(help="OOD sets that are near, separated by commas. Default: none.")
    ] = None,
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Show what each setting of the paper's method changes, on cached features.

    Curves over ratios, scope, reading, temperature, training samples and score. Every point is fitted on train and
    judged by test and ood_*, so that the best is known with hindsight only. The --rho options are the base, at which
    temperature, training samples and scores are varied: --rho-w-min 0.3 --rho-o-min 0.1.

    `OPNP()`, the fusion, takes nothing from it. `opnp tune` chooses the paper's ratios on OOD validation data, and
    measures the gain on samples that it did not choose by.
    """
    from opnp.bench import BASE_RATIOS, run_sweep

    require_report(report, made=out)
    require_out_folder(out)
    record = run_sweep(
        features,
        out,
        curves=None if curves is None else listed(curves),
        seed=seed,
        base=base.over(BASE_RATIOS),
        scope=scope,
        neuron=neuron,
        near=listed([near or ""]),
        progress=progress_bar("sweeping", is_quiet=json),
    )
    if json:
        typer.echo(record.to_json())
    else:
        for model in record.models:
            _print_model(record, model)
        typer.echo("FPR95 / AUROC in %, ID positive; the best by AUROC, known with hindsight only. Draws are averaged.")
        typer.echo(f"Every point is in {out}: start with sweep.md.")
    tell_report(out, report, is_quiet=json)


def _print_model(record: "SweepRecord", model: "SweptModel") -> None:
    energy = [cell for side in ("far", "near") for cell in (_pair(getattr(model.energy, side)), "")]
    rows = [["Energy (original head)", "", *energy]]
    for curve in record.curves:
        points = model.curve(curve.name)
        ran = [point for point in points if point.status == "ok"]
        rows.append(
            [curve.name, str(len(ran)), *(cell for side in ("far", "near") for cell in _best(curve, ran, side))]
        )
        failed = len(points) - len(ran)
        if failed:
            typer.echo(f"{model.model}: {failed} points of {curve.name} did not run; sweep.md says why.", err=True)
    print_table(
        f"{model.model}: {model.classes} classes, {model.features} features",
        ["curve", "points", "far OOD", "at", "near OOD", "at"],
        rows,
    )


def _best(curve: "SweepCurve", points: "Sequence[SweepPoint]", side: str) -> tuple[str, str]:
    """Return figures and place of the largest AUROC on one side, means over draws; empty where there is none."""
    from opnp.values.figures import mean_figures

    found: list[tuple[DetectionFigures, str]] = []
    for labels, draws in groupby(points, key=lambda point: point.labels(curve.varies)):
        figures = mean_figures([each for each in (getattr(point, side) for point in draws) if each is not None])
        if figures is not None:
            found.append((figures, ", ".join(labels)))
    if not found:
        return "", ""
    best, place = max(found, key=lambda each: each[0].auroc)
    return _pair(best), place

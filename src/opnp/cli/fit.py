"""``opnp fit``: from a model and inputs, or from cached features and a head, to a detector on disk."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.model_options import (
    AutoBatch,
    DataPath,
    ImageSize,
    LogitsPlace,
    Means,
    ModelName,
    ModelOptions,
    Resize,
    StandardDeviations,
    Strict,
    WeightsFile,
    Workers,
    logits_place,
)
from opnp.cli.options import (
    MEMBERS_HELP,
    FeaturesFileOrNone,
    JsonFlag,
    NeuronReadingName,
    PrecisionName,
    RankTimeout,
    ScopeName,
    ScoreNameOption,
    shaping_from,
)
from opnp.cli.output import print_facts, print_json, settings_text
from opnp.cli.report_option import ReportFile, require_report, tell_report
from opnp.cli.summary import summary, summary_texts
from opnp.errors import OptionError

if TYPE_CHECKING:
    from opnp.detector import OPNP

__all__ = ["fit"]


def fit(
    *,
    out: Annotated[Path, typer.Option(help="Detector to write, a safetensors file.")],
    features: FeaturesFileOrNone = None,
    model: ModelName = None,
    data: DataPath = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="With --features: safetensors file with `weight` (classes, features), and perhaps `bias`. With "
            "--model: dotted name of the head. Default: found by itself."
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Held-out ID samples to calibrate on: as --features, or as --data."),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of ID to keep, with --validation.")] = 0.95,
    members: Annotated[str | None, typer.Option(help=MEMBERS_HELP)] = None,
    rho_w_min: Annotated[
        float | None, typer.Option(help="Share of the least sensitive weights to remove, in [0, 1).")
    ] = None,
    rho_w_max: Annotated[
        float | None, typer.Option(help="Share of the most sensitive weights to remove, in [0, 1).")
    ] = None,
    rho_o_min: Annotated[
        float | None, typer.Option(help="Share of the least sensitive neurons to remove, in [0, 1).")
    ] = None,
    rho_o_max: Annotated[
        float | None, typer.Option(help="Share of the most sensitive neurons to remove, in [0, 1).")
    ] = None,
    neuron: Annotated[
        NeuronReadingName | None, typer.Option(help="Reading of the neuron sensitivity. Default: gradient.")
    ] = None,
    scope: Annotated[
        ScopeName | None,
        typer.Option(help="Rank all weights together, or each class's row by itself. Default: layer."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the energy, above 0. Default: 1.")] = None,
    score: Annotated[
        ScoreNameOption | None, typer.Option(help="Score on the pruned head's logits. Default: energy.")
    ] = None,
    shaping: Annotated[
        str | None, typer.Option(help="Shaping of the features: none, react:0.9, ash-s:0.9 or scale:0.85.")
    ] = None,
    precision: Annotated[PrecisionName, typer.Option(help="Precision of the products.")] = PrecisionName.float32,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Rows that are read and multiplied at once, 8192; with --model, inputs a batch, 64."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1. Default: cpu.")] = None,
    weights: WeightsFile = None,
    logits: LogitsPlace = None,
    workers: Workers = 0,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Means = None,
    std: StandardDeviations = None,
    strict: Strict = False,
    auto_batch: AutoBatch = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="With --features: file to write down how far the pass is, and to go on from; removed once --out is "
            "written."
        ),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Batches between two writings of --checkpoint.")] = 16,
    rank_timeout: RankTimeout = 1800,
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Fit a detector by a model and its training data, or by cached features of them, and write it.

    Without options scores of different mechanism are fused. Any --rho option, or --neuron, --scope, --temperature,
    --score or --shaping, asks for the paper's method instead: the energy of the pruned head. `opnp tune` chooses
    ratios. Several processes fit together: `torchrun --nproc-per-node 2 -m opnp fit ...`.
    """
    from opnp.cli.fit_features import FeaturesForm
    from opnp.cli.fit_model import ModelForm
    from opnp.cli.held_out import HeldOut
    from opnp.cli.model_inputs import RunOptions, require_form
    from opnp.cli.out_checks import require_out_file
    from opnp.detector import OPNP, Checkpoint, Ratios
    from opnp.distributed import launched, together

    require_report(report)
    require_form(
        features=features,
        model=model,
        of_features={"--checkpoint": checkpoint},
        of_model={
            "--data": data,
            "--weights": weights,
            "--logits": logits,
            "--workers": workers,
            "--image-size": image_size,
            "--resize": resize,
            "--mean": mean,
            "--std": std,
            "--strict": strict,
            "--auto-batch": auto_batch,
        },
    )
    beside = HeldOut(validation, keep)
    shares = {"w_min": rho_w_min, "w_max": rho_w_max, "o_min": rho_o_min, "o_max": rho_o_max}
    given = {name: value for name, value in shares.items() if value is not None}
    is_plain = shaping == "none" and not given
    detector = OPNP(
        members=None if members is None else tuple(name.strip() for name in members.split(",")),
        ratios=Ratios(**given) if given or is_plain else None,
        neuron=None if neuron is None else neuron.value,
        scope=None if scope is None else scope.value,
        temperature=temperature,
        score=None if score is None else score.value,
        shaping=None if shaping is None else shaping_from(shaping),
        precision=precision.value,
    )
    position = None if checkpoint is None else Checkpoint(checkpoint, every=checkpoint_every)
    form: FeaturesForm | ModelForm
    if features is not None:
        if head is None:
            raise OptionError("`--features` need the head they belong to: give `--head FILE`.")
        form = FeaturesForm(features, Path(head), device, batch_size, position)
    elif model is not None and data is not None:
        options = ModelOptions(model, weights, image_size, resize, mean, std)
        form = ModelForm(
            RunOptions(options, data, device, batch_size, workers, strict, auto_batch), head, logits_place(logits)
        )
    else:
        raise OptionError("`--model` needs the inputs that it was trained on: give `--data PATH`.")
    with launched(device=device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_file(out, checkpoint)
        facts = form.fit(detector, ranks, beside=beside, is_quiet=json or not ranks.is_first)
        with together(ranks):
            if ranks.is_first:
                detector.save(out)
        if position is not None:
            position.remove(ranks)
        if ranks.is_first:
            _tell(detector, facts, out=out, json=json)
            _report(detector, report, name=model or str(features), is_quiet=json)


def _report(detector: "OPNP", path: Path | None, *, name: str, is_quiet: bool) -> None:
    """Write the report of the fit, if one is asked for."""
    if path is None:
        return
    from opnp.bench import record_fit

    with TemporaryDirectory() as folder:
        record_fit(detector, folder, model=name, settings_text=settings_text(detector.settings))
        tell_report(Path(folder), path, is_quiet=is_quiet)


def _tell(detector: "OPNP", facts: dict[str, object], *, out: Path, json: bool) -> None:
    found = summary(detector) | {"out": str(out)} | facts
    if json:
        print_json(found)
        return
    counts = facts.get("unreadable")
    texts = summary_texts(detector)
    if isinstance(counts, dict):
        texts["unreadable"] = ", ".join(f"{count} of {name}" for name, count in counts.items())
    print_facts(found | texts)
    if not detector.is_calibrated:
        typer.echo("No --validation: the detector scores, but gives no p-value and no verdict.", err=True)

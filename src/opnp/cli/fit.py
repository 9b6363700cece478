"""``opnp fit``: from cached features and a head to a detector on disk."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import (
    FeaturesFile,
    JsonFlag,
    NeuronReadingName,
    PrecisionName,
    RankTimeout,
    ScopeName,
    ScoreNameOption,
    shaping_from,
)
from opnp.cli.output import print_facts, print_json, progress_bar, settings_text
from opnp.cli.summary import summary
from opnp.data import feature_part, open_features, read_head
from opnp.detector import OPNP, Checkpoint, Ratios
from opnp.detector.blocks import BLOCK_ROWS
from opnp.distributed import launched, local_device, require_equal, together

__all__ = ["fit"]


def fit(
    *,
    features: FeaturesFile,
    head: Annotated[Path, typer.Option(help="Safetensors file with `weight` (classes, features), and perhaps `bias`.")],
    out: Annotated[Path, typer.Option(help="Detector to write, a safetensors file.")],
    validation: Annotated[
        Path | None, typer.Option(help="Features of held-out ID samples, to choose and to calibrate on.")
    ] = None,
    val_ood: Annotated[
        Path | None, typer.Option(help="Features of OOD samples to choose automatic ratios by. None are needed.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of ID to keep, with --validation.")] = 0.95,
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
        NeuronReadingName, typer.Option(help="Reading of the neuron sensitivity.")
    ] = NeuronReadingName.gradient,
    scope: Annotated[
        ScopeName, typer.Option(help="Rank all weights together, or each class's row by itself.")
    ] = ScopeName.layer,
    temperature: Annotated[float, typer.Option(help="Temperature of the energy, above 0.")] = 1.0,
    score: Annotated[ScoreNameOption, typer.Option(help="Score on the pruned head's logits.")] = ScoreNameOption.energy,
    shaping: Annotated[
        str, typer.Option(help="Shaping of the features: auto, none, react:0.9, ash-s:0.9 or scale:0.85.")
    ] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="Precision of the products.")] = PrecisionName.float32,
    batch_size: Annotated[int, typer.Option(help="Rows that are read and multiplied at once.")] = BLOCK_ROWS,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File to write down how far the pass is, and to go on from; removed once --out is written."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Batches between two writings of --checkpoint.")] = 16,
    rank_timeout: RankTimeout = 1800,
    json: JsonFlag = False,
) -> None:
    """Fit a detector on cached features of training data, and write it.

    Without any --rho option ratios and shaping are chosen automatically, on the held-out samples of --validation.
    Several processes fit together: `torchrun --nproc-per-node 2 -m opnp fit ...`.
    """
    shares = {"w_min": rho_w_min, "w_max": rho_w_max, "o_min": rho_o_min, "o_max": rho_o_max}
    given = {name: value for name, value in shares.items() if value is not None}
    detector = OPNP(
        ratios=Ratios(**given) if given else "auto",
        neuron=neuron.value,
        scope=scope.value,
        temperature=temperature,
        score=score.value,
        shaping="auto" if shaping == "auto" else shaping_from(shaping),
        precision=precision.value,
    )
    position = None if checkpoint is None else Checkpoint(checkpoint, every=checkpoint_every)
    with launched(device=device, timeout=rank_timeout) as ranks:
        with together(ranks):
            training, classifier, place = open_features(features), read_head(head), local_device(device)
            held_out, outside = (  # rank 0 alone needs them, perhaps on a machine of its own
                None if path is None or not ranks.is_first else open_features(path) for path in (validation, val_ood)
            )
        require_equal(f"({training.rows}, {training.width})", ranks, what="features of shape")
        detector.fit_features(
            feature_part(training, *ranks.part(training.rows)),
            weight=classifier.weight.to(place),
            bias=None if classifier.bias is None else classifier.bias.to(place),
            validation=held_out,
            validation_ood=outside,
            keep=keep,
            batch_size=batch_size,
            checkpoint=position,
            distributed=not ranks.is_alone,
            progress=progress_bar("fitting", is_quiet=json or not ranks.is_first),
        )
        with together(ranks):
            if ranks.is_first:
                detector.save(out)
        if position is not None:
            position.remove(ranks)
        if ranks.is_first:
            _tell(detector, out=out, json=json)


def _tell(detector: OPNP, *, out: Path, json: bool) -> None:
    facts = summary(detector) | {"out": str(out)}
    if json:
        print_json(facts)
        return
    print_facts(facts | {"settings": settings_text(detector.settings)})
    if not detector.is_calibrated:
        typer.echo("No --validation: the detector scores, but gives no p-value and no verdict.", err=True)

"""``opnp fit``: from cached features and a head to a detector on disk."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import (
    FeaturesFile,
    JsonFlag,
    NeuronReadingName,
    PrecisionName,
    ScopeName,
    ScoreNameOption,
    shaping_from,
)
from opnp.cli.output import print_facts, print_json, progress_bar, settings_text
from opnp.cli.summary import summary
from opnp.data import read_features, read_head
from opnp.detector import OPNP, Ratios

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
    json: JsonFlag = False,
) -> None:
    """Fit a detector on cached features of training data, and write it.

    Without any --rho option ratios and shaping are chosen automatically, on the held-out samples of --validation.
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
    training, classifier = read_features(features), read_head(head)
    held_out = None if validation is None else read_features(validation)
    outside = None if val_ood is None else read_features(val_ood)
    detector.fit_features(
        training.features,
        weight=classifier.weight,
        bias=classifier.bias,
        labels=training.labels,
        validation=None if held_out is None else (held_out.features, held_out.labels),
        validation_ood=None if outside is None else outside.features,
        keep=keep,
        progress=progress_bar("fitting", is_quiet=json),
    )
    detector.save(out)
    facts = summary(detector) | {"out": str(out)}
    if json:
        print_json(facts)
        return
    print_facts(facts | {"settings": settings_text(detector.settings)})
    if held_out is None:
        typer.echo("No --validation: the detector scores, but gives no p-value and no verdict.", err=True)

"""``opnp tune``: ratios of the paper's method, chosen on OOD validation data."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import FeaturesFile, JsonFlag, ScoreNameOption, shaping_from
from opnp.cli.output import print_facts, print_json
from opnp.cli.summary import summary, summary_texts

__all__ = ["tune"]


def tune(
    *,
    features: FeaturesFile,
    head: Annotated[Path, typer.Option(help="Safetensors file with `weight` (classes, features), and perhaps `bias`.")],
    validation: Annotated[Path, typer.Option(help="Features of held-out ID samples.")],
    val_ood: Annotated[Path, typer.Option(help="Features of OOD samples to choose by.")],
    out: Annotated[Path | None, typer.Option(help="Detector to write, a safetensors file.")] = None,
    keep: Annotated[float, typer.Option(help="Share of ID to keep.")] = 0.95,
    score: Annotated[ScoreNameOption, typer.Option(help="Score on the pruned head's logits.")] = ScoreNameOption.energy,
    shaping: Annotated[str, typer.Option(help="Shaping to tune ratios under: none, scale:0.85, ...")] = "none",
    json: JsonFlag = False,
) -> None:
    """Choose the four ratios, scope and neuron reading on OOD validation data, as the paper does.

    Half of the samples are searched on; the gain over the plain energy is measured on the others, and those of them
    that are ID calibrate. `opnp fit` needs none of this.
    """
    from opnp.cli.out_checks import require_out_file
    from opnp.data import open_features, read_head
    from opnp.detector import OPNP

    if out is not None:
        require_out_file(out)
    classifier = read_head(head)
    detector = OPNP(ratios="tuned", score=score.value, shaping=shaping_from(shaping)).fit_features(
        open_features(features),
        weight=classifier.weight,
        bias=classifier.bias,
        validation=open_features(validation),
        validation_ood=open_features(val_ood),
        keep=keep,
    )
    if out is not None:
        detector.save(out)
    found = summary(detector) | ({} if out is None else {"out": str(out)})
    if json:
        print_json(found)
    else:
        print_facts(found | summary_texts(detector))

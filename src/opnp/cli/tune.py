"""``opnp tune``: ratios of the paper's method, chosen on OOD validation data."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.fit import print_detector
from opnp.cli.options import (
    CalibrateBy,
    FeaturesFile,
    HeadFile,
    JsonFlag,
    detector_option,
    input_option,
    require_out_file,
    shaping_from,
    warn_unless_held_out,
)
from opnp.errors import OptionError
from opnp.values.settings import ScoreName


def tune(
    *,
    features: FeaturesFile,
    head: HeadFile,
    validation: Annotated[Path, input_option(help="Features of held-out ID samples.")],
    val_ood: Annotated[Path, input_option(help="Features of OOD samples to choose by.")],
    out: Annotated[Path | None, typer.Option(help="Detector to write, a safetensors file.")] = None,
    keep: Annotated[float, detector_option(help="Share of ID to keep.")] = 0.95,
    calibrate_by: CalibrateBy = None,
    score: Annotated[ScoreName, detector_option(help="Score on the pruned head's logits.")] = "energy",
    shaping: Annotated[str, detector_option(help="Shaping to tune ratios under: none, scale:0.85, ...")] = "none",
    json: JsonFlag = False,
) -> None:
    """Choose the four ratios, scope and neuron reading on OOD validation data, as the paper does.

    Half of the samples are searched on; the gain over the plain energy is measured on the others, and those of them
    that are ID calibrate. `opnp fit` needs none of this.
    """
    from opnp.data import open_features, read_head
    from opnp.detector import OPNP

    require_out_file(out)
    warn_unless_held_out(validation, training=features)
    training, classifier = open_features(features), read_head(head)
    known, other = (open_features(path, feature_names=training.feature_names) for path in (validation, val_ood))
    if known.digest() == other.digest():
        raise OptionError(
            f"`--validation` and `--val-ood` hold the same features ({validation}, {val_ood}): give ID samples and OOD "
            f"samples, which must differ for anything to be chosen by them."
        )
    detector = OPNP(ratios="tuned", score=score, shaping=shaping_from(shaping)).fit_features(
        training,
        weight=classifier.weight,
        bias=classifier.bias,
        validation=known,
        validation_ood=other,
        keep=keep,
        by=calibrate_by,
    )
    if out is not None:
        detector.save(out)
    print_detector(detector, {} if out is None else {"out": str(out)}, json=json)

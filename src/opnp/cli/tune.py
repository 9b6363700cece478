"""``opnp tune``: what automatic ratios try, and what they choose, without writing a detector."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.options import FeaturesFile, JsonFlag, shaping_from
from opnp.cli.output import print_json, print_table, settings_text

if TYPE_CHECKING:
    from opnp.detector import Trial

__all__ = ["tune"]


def tune(
    *,
    features: FeaturesFile,
    head: Annotated[Path, typer.Option(help="Safetensors file with `weight` (classes, features), and perhaps `bias`.")],
    validation: Annotated[Path | None, typer.Option(help="Features of held-out ID samples, labels if known.")] = None,
    val_ood: Annotated[Path | None, typer.Option(help="Features of OOD samples to choose by. None are needed.")] = None,
    shaping: Annotated[str, typer.Option(help="auto, or the one to tune ratios under: none, scale:0.85, ...")] = "auto",
    top: Annotated[int, typer.Option(help="Number of settings to show, the best first.")] = 10,
    json: JsonFlag = False,
) -> None:
    """Choose ratios, scope, neuron reading and shaping without OOD data, and show what was tried.

    Class holdout: some classes are left out of the head, and their ID samples must be told from the others.
    """
    from opnp.data import open_features, read_head
    from opnp.detector import OPNP

    classifier = read_head(head)
    detector = OPNP(shaping="auto" if shaping == "auto" else shaping_from(shaping)).fit_features(
        open_features(features),
        weight=classifier.weight,
        bias=classifier.bias,
        validation=None if validation is None else open_features(validation),
        validation_ood=None if val_ood is None else open_features(val_ood),
    )
    tuning = detector.tuning
    if tuning is None:
        if json:
            print_json({"chosen": detector.settings.to_json(), "trials": []})
        else:
            typer.echo("Nothing was chosen: no pruning, no shaping.")
        return
    trials = sorted(tuning.trials, key=lambda trial: -trial.value)
    if json:
        values = tuning.to_json() | {"gain": tuning.gain, "spread": tuning.spread}
        print_json(values | {"trials": [trial.to_json() for trial in trials]})
        return
    shown = [tuning.chosen, tuning.energy, *(trial for trial in trials if trial not in (tuning.chosen, tuning.energy))]
    names = ["chosen", "energy", *("" for _ in shown[2:])]
    print_table(
        f"{tuning.tried} settings, judged on {tuning.samples} {tuning.source} samples",
        ["setting", "", "holdout AUROC", "thinned", "scrambled", "failure", "accuracy lost", "value", "allowed"],
        [_row(trial, name) for trial, name in zip(shown[: top + 2], names, strict=False)],
    )
    typer.echo(
        f"Gain over the energy: {100 * tuning.gain:.2f} points of holdout AUROC, spread {100 * tuning.spread:.2f}."
    )


def _row(trial: "Trial", name: str) -> list[str]:
    shares = (trial.mean_holdout, trial.thinned, trial.scrambled, trial.failure)
    return [
        settings_text(trial.settings),
        name,
        *(f"{100 * share:.2f}" for share in shares),
        f"{100 * trial.loss:.2f}",
        f"{trial.value:.3f}",
        "yes" if trial.is_harmless else "no",
    ]

"""``opnp inspect``: what a detector on disk is."""

from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import JsonFlag
from opnp.cli.output import print_facts, print_json
from opnp.cli.summary import summary, summary_texts

__all__ = ["inspect"]


def inspect(
    detector: Annotated[Path, typer.Argument(help="Detector that `opnp fit` wrote.")],
    json: JsonFlag = False,
) -> None:
    """Print what a detector holds: settings, what it pruned, its sensitivities and its calibration."""
    from opnp.detector import OPNP

    loaded = OPNP.load(detector)
    sensitivity = loaded.sensitivity
    statistics = {
        f"{name}_sensitivity_{kind}": float(value)
        for name, values in {
            "weight": sensitivity.weight,
            "neuron_gradient": sensitivity.neuron_gradient,
            "neuron_aggregate": sensitivity.neuron_aggregate,
        }.items()
        for kind, value in {"mean": values.mean(), "max": values.max()}.items()
    }
    facts = summary(loaded) | statistics
    if json:
        print_json(facts)
    else:
        print_facts(facts | summary_texts(loaded))

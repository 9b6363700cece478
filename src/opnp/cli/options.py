"""Options that several commands share, and their reading."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from opnp.core import ASHS, SCALE, ReAct, Shaping
from opnp.errors import OptionError

__all__ = [
    "DetectorFile",
    "FeaturesFile",
    "JsonFlag",
    "NeuronReadingName",
    "PrecisionName",
    "RankTimeout",
    "ScopeName",
    "ScoreNameOption",
    "shaping_from",
    "shaping_text",
]

_SHAPINGS: dict[str, type[ReAct | ASHS | SCALE]] = {"react": ReAct, "ash-s": ASHS, "scale": SCALE}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FeaturesFile = Annotated[
    Path,
    typer.Option(
        help="Safetensors file with `features` (batch, features), and perhaps `labels`; or a folder of feature shards."
    ),
]
RankTimeout = Annotated[
    float, typer.Option(help="Under torchrun: seconds that a rank waits for the others before it gives up.")
]
DetectorFile = Annotated[Path, typer.Option(help="Detector that `opnp fit` wrote.")]


class NeuronReadingName(StrEnum):
    """Readings of the neuron sensitivity."""

    gradient = "gradient"
    aggregate = "aggregate"


class ScopeName(StrEnum):
    """What the weights are ranked within."""

    layer = "layer"
    by_class = "class"


class ScoreNameOption(StrEnum):
    """Scores on the pruned head's logits."""

    energy = "energy"
    msp = "msp"
    max_logit = "max_logit"
    entropy = "entropy"
    gen = "gen"


class PrecisionName(StrEnum):
    """Precision of products."""

    float32 = "float32"
    float64 = "float64"


def shaping_from(text: str) -> Shaping | None:
    """Return the shaping that a text such as ``react:0.95``, ``ash-s:0.9``, ``scale:0.85`` or ``none`` names.

    Raises:
        OptionError: If it names none, or the number is no fraction.

    Example:
        >>> shaping_from("scale:0.85"), shaping_from("none"), shaping_from("react")
        (SCALE(quantile=0.85), None, ReAct(quantile=0.9))

    """
    name, _, quantile = text.partition(":")
    if text == "none":
        return None
    try:
        return _SHAPINGS[name](float(quantile)) if quantile else _SHAPINGS[name]()
    except (KeyError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"`--shaping` must be none, react:Q, ash-s:Q or scale:Q with a fraction Q such as 0.9, got {text!r}.",
        ) from None


def shaping_text(shaping: Shaping) -> str:
    """Return the text that `shaping_from` reads as this shaping.

    Example:
        >>> shaping_text(SCALE(0.85))
        'scale:0.85'

    """
    name = next(name for name, kind in _SHAPINGS.items() if isinstance(shaping, kind))
    return f"{name}:{shaping.quantile:g}"

"""Options that several commands share, and their reading."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.errors import OptionError

if TYPE_CHECKING:
    from opnp.core import ASHS, SCALE, ReAct, Shaping

__all__ = [
    "MEMBERS_HELP",
    "DetectorFile",
    "FeaturesFile",
    "FeaturesFileOrNone",
    "JsonFlag",
    "NeuronReadingName",
    "PrecisionName",
    "RankTimeout",
    "ScopeName",
    "ScoreNameOption",
    "shaping_from",
    "shaping_text",
]

MEMBERS_HELP = (
    "Names of the scores to fuse, separated by commas: gen, energy, react, scale, ash_s, fdbd, nci, mahalanobis, "
    "relative_mahalanobis, vim, opnp, opnp_gen, norm. Default: gen,react,fdbd,mahalanobis,vim,opnp,norm."
)
_FEATURES = "Safetensors file with `features` (batch, features), and perhaps `labels`; or a folder of feature shards."

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FeaturesFile = Annotated[
    Path,
    typer.Option(help=_FEATURES),
]
FeaturesFileOrNone = Annotated[
    Path | None,
    typer.Option(help=_FEATURES),
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


def shaping_from(text: str) -> "Shaping | None":
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
        kind = _shapings()[name]
        return kind(float(quantile)) if quantile else kind()
    except (KeyError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"`--shaping` must be none, react:Q, ash-s:Q or scale:Q with a fraction Q such as 0.9, got {text!r}.",
        ) from None


def shaping_text(shaping: "Shaping") -> str:
    """Return the text that `shaping_from` reads as this shaping.

    Example:
        >>> from opnp import SCALE
        >>> shaping_text(SCALE(0.85))
        'scale:0.85'

    """
    name = next(name for name, kind in _shapings().items() if isinstance(shaping, kind))
    return f"{name}:{shaping.quantile:g}"


def _shapings() -> "dict[str, type[ReAct | ASHS | SCALE]]":
    """Return the shapings by the names that they have on the command line."""
    from opnp.core import ASHS, SCALE, ReAct

    return {"react": ReAct, "ash-s": ASHS, "scale": SCALE}

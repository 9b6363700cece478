"""What a detector is asked to do: every option, checked once, as one immutable value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self, get_args

from opnp.core.checks import checked_temperature
from opnp.core.masks import Scope
from opnp.core.scores import SCORE_NAMES, ScoreName
from opnp.core.sensitivity import NeuronReading, Precision
from opnp.core.shaping import ASHS, SCALE, ReAct, Shaping
from opnp.detector.ratios import Ratios
from opnp.errors import OptionError

__all__ = ["Auto", "Settings"]

Auto = Literal["auto"]

_SHAPINGS: dict[str, type[ReAct | ASHS | SCALE]] = {"react": ReAct, "ash_s": ASHS, "scale": SCALE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a detector.

    Attributes:
        ratios: Pruning ratios, or ``"auto"``.
        neuron: Reading of the neuron sensitivity, ``"gradient"`` or ``"aggregate"``.
        scope: What the weights are ranked within, ``"layer"`` or ``"class"``.
        temperature: Temperature T of sensitivity and score, above 0.
        score: Name of the score on the pruned head's logits.
        shaping: Shaping of the features before the pruned head, None, or ``"auto"``.
        precision: Precision of products, ``"float32"`` or ``"float64"``.

    """

    ratios: Ratios | Auto = "auto"
    neuron: NeuronReading = "gradient"
    scope: Scope = "layer"
    temperature: float = 1.0
    score: ScoreName = "energy"
    shaping: Shaping | Auto | None = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Check every option."""
        if self.ratios != "auto" and not isinstance(self.ratios, Ratios):
            raise OptionError(f'`ratios` must be a Ratios(...) or "auto", got {self.ratios!r}.')
        if self.shaping not in ("auto", None) and not isinstance(self.shaping, Shaping):
            raise OptionError(
                f'`shaping` must be "auto", None, ReAct(...), ASHS(...) or SCALE(...), got {self.shaping!r}.',
            )
        _require_one_of("neuron", self.neuron, get_args(NeuronReading))
        _require_one_of("scope", self.scope, get_args(Scope))
        _require_one_of("score", self.score, SCORE_NAMES)
        _require_one_of("precision", self.precision, get_args(Precision))
        object.__setattr__(self, "temperature", checked_temperature(self.temperature))

    @property
    def is_automatic(self) -> bool:
        """Whether something is left to be chosen: with fixed ratios ``shaping="auto"`` stands for none."""
        return self.ratios == "auto"

    @property
    def fixed_ratios(self) -> Ratios:
        """The ratios; none where they are automatic and nothing has chosen them."""
        return Ratios() if self.ratios == "auto" else self.ratios

    @property
    def fixed_shaping(self) -> Shaping | None:
        """The shaping; none where it is automatic and nothing has chosen it."""
        return None if self.shaping == "auto" else self.shaping

    def resolved(self) -> Self:
        """Return the settings with nothing left automatic."""
        return replace(self, ratios=self.fixed_ratios, shaping=self.fixed_shaping)

    def to_json(self) -> dict[str, object]:
        """Return the settings as JSON values, for `from_json`."""
        shaping: object = self.shaping
        for name, kind in _SHAPINGS.items():
            if isinstance(self.shaping, kind):
                shaping = {"name": name, "quantile": self.shaping.quantile}
        return {
            "ratios": self.ratios if self.ratios == "auto" else asdict(self.ratios),
            "neuron": self.neuron,
            "scope": self.scope,
            "temperature": self.temperature,
            "score": self.score,
            "shaping": shaping,
            "precision": self.precision,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """Return the settings that `to_json` wrote.

        Raises:
            OptionError: If a value is out of range.
            TypeError: If the values are not those of settings.
            KeyError: If a shaping is unknown.

        """
        fields = dict(values)
        ratios, shaping = fields.get("ratios"), fields.get("shaping")
        if isinstance(ratios, Mapping):
            fields["ratios"] = Ratios(**ratios)
        if isinstance(shaping, Mapping):
            fields["shaping"] = _SHAPINGS[shaping["name"]](shaping["quantile"])
        return cls(**fields)  # type: ignore[arg-type]  # checked one by one in __post_init__


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")

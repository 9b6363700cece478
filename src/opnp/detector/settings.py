"""Which arguments of `OPNP(...)` mean what: a fusion, the paper's method with given ratios, or with tuned ones."""

from collections.abc import Sequence
from typing import Literal

from opnp.core.masks import Scope
from opnp.core.members import PANEL
from opnp.core.scores import ScoreName
from opnp.core.sensitivity import NeuronReading, Precision
from opnp.core.shaping import Shaping
from opnp.errors import OptionError
from opnp.fitted import Ratios, Settings

__all__ = ["Tuned", "settings_from"]

Tuned = Literal["tuned"]
"""Ratios that are chosen on OOD validation data."""


def settings_from(
    *,
    members: Sequence[str] | None = None,
    ratios: Ratios | Tuned | None = None,
    neuron: NeuronReading | None = None,
    scope: Scope | None = None,
    temperature: float | None = None,
    score: ScoreName | None = None,
    shaping: Shaping | None = None,
    precision: Precision = "float32",
) -> Settings:
    """Return the settings that the arguments of `OPNP(...)` stand for; None is an argument that is not given.

    None of them, or `members` alone, means the fusion. Any other means the paper's method, in which what is not given
    is none: no pruning, no shaping, the energy at temperature 1.

    Raises:
        OptionError: If a value is out of range, or `members` come together with options of the paper's method.

    Example:
        >>> settings_from().members
        ('gen', 'react', 'fdbd', 'mahalanobis', 'vim', 'opnp', 'norm')
        >>> settings_from(score="msp").ratios
        Ratios(w_min=0.0, w_max=0.0, o_min=0.0, o_max=0.0)
        >>> settings_from(members=["gen"], score="msp")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        opnp.errors.OptionError: `members` choose scores to fuse, and `score` belongs to the pruned head alone: ...

    """
    given = {
        name: value
        for name, value in {
            "ratios": ratios,
            "neuron": neuron,
            "scope": scope,
            "temperature": temperature,
            "score": score,
            "shaping": shaping,
        }.items()
        if value is not None
    }
    if members is not None and given:
        raise OptionError(
            f"`members` choose scores to fuse, and `{next(iter(given))}` belongs to the pruned head alone: give one or "
            f"the other."
        )
    if not given:
        return Settings.of_fusion(PANEL if members is None else members, precision=precision)
    if given.get("ratios") == "tuned":
        given.pop("ratios")
    elif ratios is not None and not isinstance(ratios, Ratios):
        hint = (
            ' "auto" was version 0.1: `OPNP()` now fuses scores in place of choosing one.'
            if str(ratios) == "auto"
            else ""
        )
        raise OptionError(f'`ratios` must be a Ratios(...) or "tuned", got {ratios!r}.{hint}')
    return Settings(**given, precision=precision)  # type: ignore[arg-type]  # checked there one by one

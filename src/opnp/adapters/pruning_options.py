"""The options of a detector as flat names and values, which is how other toolkits tune."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from inspect import signature

from opnp.detector import OPNP, Ratios, Settings
from opnp.detector.settings import settings_from
from opnp.errors import NotFittedError, OptionError
from opnp.fitted import shaping_from_json

__all__ = ["OPTION_DEFAULTS", "RATIO_NAMES", "blank_pass", "checked_names", "reset", "settings_of"]

RATIO_NAMES = tuple(asdict(Ratios()))
"""``w_min``, ``w_max``, ``o_min``, ``o_max``."""

OPTION_DEFAULTS: dict[str, object] = dict.fromkeys(RATIO_NAMES) | {
    name: parameter.default for name, parameter in signature(settings_from).parameters.items() if name != "ratios"
}
"""Every option with its default, None for one that is not given; names beside the ratios are those of `OPNP`."""


def settings_of(options: Mapping[str, object]) -> Settings:
    """Return the settings that flat options stand for.

    Args:
        options: Values by name, of `OPTION_DEFAULTS`; what is left out has its default. Without any but `members` and
            `precision` they are those of a fusion. Ratios that are None count as 0 beside other options. A shaping may
            be given as a mapping such as ``{"name": "scale", "quantile": 0.85}``.

    Raises:
        OptionError: If a name is unknown, a value is out of range, or options do not go together.
        RatioError: If a ratio is out of range, or two of one layer leave nothing.

    Example:
        >>> settings_of({"w_min": 0.3}).ratios
        Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0)
        >>> settings_of({}).is_fusion
        True

    """
    checked_names(options, allowed=OPTION_DEFAULTS)
    given = {**OPTION_DEFAULTS, **options}
    shares = {name: given.pop(name) for name in RATIO_NAMES}
    ratios = {name: share for name, share in shares.items() if share is not None}
    try:
        given["shaping"] = shaping_from_json(given["shaping"])
    except (KeyError, TypeError):
        raise OptionError(
            f"`shaping` must be None, or a mapping with `name` (react, ash_s or scale) and `quantile`, got "
            f"{given['shaping']!r}."
        ) from None
    return settings_from(ratios=Ratios(**ratios) if ratios else None, **given)  # type: ignore[arg-type]  # checked there


def checked_names(names: Mapping[str, object], *, allowed: Mapping[str, object]) -> None:
    """Refuse names that are no options, which would otherwise change nothing.

    Raises:
        OptionError: If a name is not among those allowed.

    """
    unknown = sorted(str(name) for name in names if name not in allowed)
    if unknown:
        raise OptionError(f"Options must be among {', '.join(allowed)}, got {', '.join(unknown)}.")


def blank_pass(settings: Settings) -> Settings:
    """Return what a pass over the training data depends on: of the paper's method not on ratios, reading and scope."""
    if settings.is_fusion:
        return settings
    default = Settings()
    return replace(settings, ratios=Ratios(), neuron=default.neuron, scope=default.scope)


def reset(detector: OPNP, settings: Settings) -> OPNP:
    """Return a fitted detector under other ratios, reading and scope; a fusion stays as it is.

    Raises:
        NotFittedError: If the one is a fusion, and the other is not: they take other sums.

    """
    if settings.is_fusion != detector.settings.is_fusion:
        raise NotFittedError("The fusion and the pruned head alone take another pass each: fit again.")
    if settings.is_fusion:
        return detector
    return detector.with_ratios(settings.ratios, neuron=settings.neuron, scope=settings.scope)

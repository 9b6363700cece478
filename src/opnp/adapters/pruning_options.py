"""The options of a detector as flat names and values, which is how other toolkits tune."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from inspect import signature

from opnp.detector import OPNP, Ratios, Settings
from opnp.errors import OptionError

__all__ = ["OPTION_DEFAULTS", "RATIO_NAMES", "blank_pass", "checked_names", "opnp_of", "reset", "settings_of"]

RATIO_NAMES = tuple(asdict(Ratios()))
"""``w_min``, ``w_max``, ``o_min``, ``o_max``."""

OPTION_DEFAULTS: dict[str, object] = dict.fromkeys(RATIO_NAMES) | {
    name: parameter.default for name, parameter in signature(Settings).parameters.items() if name != "ratios"
}
"""Every option with its default, None for a ratio; names other than those of the ratios are those of `Settings`."""


def settings_of(options: Mapping[str, object]) -> Settings:
    """Return the settings that flat options stand for.

    Args:
        options: Values by name, of `OPTION_DEFAULTS`; what is left out has its default. Ratios that are None count as
            0 beside others; where all four are None they are chosen automatically. A shaping may be given as a mapping
            such as ``{"name": "scale", "quantile": 0.85}``.

    Raises:
        OptionError: If a name is unknown, or a value is out of range.
        RatioError: If a ratio is out of range, or two of one layer leave nothing.

    Example:
        >>> settings_of({"w_min": 0.3}).ratios
        Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0)
        >>> settings_of({}).ratios
        'auto'

    """
    checked_names(options, allowed=OPTION_DEFAULTS)
    given = {**OPTION_DEFAULTS, **options}
    ratios = {name: given.pop(name) for name in RATIO_NAMES}
    is_automatic = all(value is None for value in ratios.values())
    shaping = given["shaping"]
    try:
        return Settings.from_json(
            {
                **given,
                "ratios": "auto" if is_automatic else {name: value or 0.0 for name, value in ratios.items()},
            }
        )
    except KeyError:
        raise OptionError(
            f'`shaping` must be None, "auto", or a mapping with `name` (react, ash_s or scale) and `quantile`, got '
            f"{shaping!r}."
        ) from None


def checked_names(names: Mapping[str, object], *, allowed: Mapping[str, object]) -> None:
    """Refuse names that are no options, which would otherwise change nothing.

    Raises:
        OptionError: If a name is not among those allowed.

    """
    unknown = sorted(str(name) for name in names if name not in allowed)
    if unknown:
        raise OptionError(f"Options must be among {', '.join(allowed)}, got {', '.join(unknown)}.")


def blank_pass(settings: Settings) -> Settings:
    """Return what a pass over the training data depends on: the settings without ratios, reading and scope.

    Automatic settings stay as they are, since that pass chooses.
    """
    if settings.is_automatic:
        return settings
    default = Settings()
    return replace(settings, ratios=Ratios(), neuron=default.neuron, scope=default.scope)


def opnp_of(settings: Settings) -> OPNP:
    """Return an unfitted detector with these settings."""
    return OPNP(**{name: getattr(settings, name) for name in Settings.__slots__})


def reset(detector: OPNP, settings: Settings) -> OPNP:
    """Return a fitted detector under other ratios, reading and scope; the same one where ratios are automatic."""
    if settings.ratios == "auto":
        return detector
    return detector.with_ratios(settings.ratios, neuron=settings.neuron, scope=settings.scope)

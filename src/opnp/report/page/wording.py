"""Numbers and settings in the words of the page."""

from collections.abc import Mapping

from opnp.report.series.wording import RATIO_TITLES, fused_members, listed, ratio_text

__all__ = ["GROUP_TITLES", "LEAST_CHANGE", "count_text", "settings_words", "share_change", "unbroken"]

GROUP_TITLES = {
    "reference": "fixed ratios",
    "baseline": "published",
    "combination": "on pruned head",
    "product": "as used",
}
"""Kinds of rows by name of the group."""

LEAST_CHANGE = 0.001 - 1e-9
"""Changes of a share that are smaller count for nothing."""
_SHAPING_TITLES = {"ash_s": "ASH-S", "ashs": "ASH-S", "react": "ReAct", "scale": "SCALE"}


def count_text(count: int) -> str:
    r"""Return a count with a space between thousands.

    Example:
        >>> count_text(8000) == "8\N{NARROW NO-BREAK SPACE}000"
        True

    """
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def unbroken(text: str) -> str:
    r"""Return text whose numbers stay on one line with their per-cent sign.

    Example:
        >>> unbroken("5 % of ID") == "5\N{NO-BREAK SPACE}% of ID"
        True

    """
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def share_change(before: float, after: float, *, verbs: tuple[str, str]) -> str:
    """Return how a share went from one value to another, as far as a tenth of a per cent or more.

    Args:
        before: A share in [0, 1].
        after: Another one.
        verbs: What it does where it becomes smaller, and where it becomes larger.

    Example:
        >>> share_change(0.25, 0.101, verbs=("falls", "rises"))
        'falls from 25.0 % to 10.1 %'
        >>> share_change(0.25, 0.2501, verbs=("falls", "rises"))
        'stays at 25.0 %'
        >>> share_change(0.2504, 0.2506, verbs=("falls", "rises"))
        'stays at 25.0 % within 0.1 %'

    """
    first, second = f"{100 * before:.1f}", f"{100 * after:.1f}"
    if abs(after - before) < LEAST_CHANGE:
        return f"stays at {first} %" + ("" if first == second else " within 0.1 %")
    if first == second:
        first, second = f"{100 * before:.2f}", f"{100 * after:.2f}"
    return f"{verbs[after > before]} from {first} % to {second} %"


def settings_words(settings: Mapping[str, object]) -> str:
    """Return what a detector of opnp does to its head and features, or which scores it fuses.

    Args:
        settings: Settings as JSON values.

    Example:
        >>> settings_words({"ratios": {"w_min": 0.3, "o_min": 0.0}, "shaping": None})
        'pruning rho_w_min 0.3, no shaping'
        >>> settings_words({"ratios": {"w_min": 0.0}, "shaping": {"name": "scale", "quantile": 0.9}})
        'SCALE shaping at quantile 0.9, no pruning'
        >>> settings_words({"ratios": {}, "shaping": None})
        'no pruning, no shaping'
        >>> settings_words({"members": ["gen", "vim"]})
        'a fusion of gen and vim'
        >>> settings_words({"members": ["vim"]})
        'vim alone, in units of its tail'

    """
    members = fused_members(settings)
    if members:
        return f"a fusion of {listed(members)}" if len(members) > 1 else f"{members[0]} alone, in units of its tail"
    pruning, shaping = _pruning_words(settings.get("ratios")), _shaping_words(settings.get("shaping"))
    if pruning and shaping:
        return f"pruning {pruning} and {shaping}"
    if pruning:
        return f"pruning {pruning}, no shaping"
    return f"{shaping}, no pruning" if shaping else "no pruning, no shaping"


def _pruning_words(ratios: object) -> str:
    if not isinstance(ratios, Mapping):
        return ""
    values = [(name, ratios.get(name)) for name in RATIO_TITLES]
    return listed(
        [f"rho_{name} {ratio_text(value)}" for name, value in values if isinstance(value, int | float) and value > 0]
    )


def _shaping_words(shaping: object) -> str:
    if not isinstance(shaping, Mapping) or "name" not in shaping:
        return ""
    name = str(shaping["name"])
    places = listed([f"{key} {value}" for key, value in shaping.items() if key != "name"])
    return f"{_SHAPING_TITLES.get(name, name)} shaping" + (f" at {places}" if places else "")

"""Words and numbers as figures and the page show them, and the settings of a row in words."""

from collections.abc import Mapping, Sequence

__all__ = [
    "GROUP_TITLES",
    "LEAST_CHANGE",
    "RATIO_NAMES",
    "brief_percent",
    "chosen_ratios",
    "count_of_sets",
    "count_text",
    "fused_members",
    "gallery_title",
    "has_shaping",
    "listed",
    "method_label",
    "percent",
    "ratio_text",
    "set_label",
    "set_title",
    "settings_words",
    "share_change",
    "unbroken",
]

RATIO_NAMES = ("w_min", "w_max", "o_min", "o_max")
"""The four ratios."""

GROUP_TITLES = {
    "reference": "fixed ratios",
    "baseline": "published",
    "combination": "on pruned head",
    "tuned": "tuned on OOD data",
    "product": "as used",
}
"""Kinds of rows by name of the group."""

LEAST_CHANGE = 0.001 - 1e-9
"""Changes of a share that are smaller count for nothing."""
_SHAPING_TITLES = {"ash_s": "ASH-S", "ashs": "ASH-S", "react": "ReAct", "scale": "SCALE"}


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in percent.

    Example:
        >>> percent(0.7249), percent(0.05, 0)
        ('72.5 %', '5 %')

    """
    return f"{100 * fraction:.{digits}f} %"


def brief_percent(fraction: float) -> str:
    """Return a fraction in percent with no more digits than it has.

    Example:
        >>> brief_percent(0.95), brief_percent(0.975)
        ('95 %', '97.5 %')

    """
    return f"{100 * fraction:.6g} %"


def ratio_text(value: float) -> str:
    """Return a ratio as it is written on the command line.

    Example:
        >>> ratio_text(0.0005), ratio_text(0.30)
        ('0.0005', '0.3')

    """
    return f"{value:.6f}".rstrip("0").rstrip(".")


def method_label(method: str) -> str:
    """Return the name of a row without the samples it was judged by.

    Example:
        >>> method_label("Energy, rest of test")
        'Energy'

    """
    return method.removesuffix(", rest of test")


def set_label(name: str) -> str:
    """Return the name of a set for readers.

    Example:
        >>> set_label("test"), set_label("ood_tiny_imagenet_crop")
        ('ID', 'tiny imagenet crop')

    """
    return "ID" if name == "test" else name.removeprefix("ood_").replace("_", " ")


def set_title(name: str, nearness: str) -> str:
    """Return the name of an OOD set with its nearness, unless the name says that already.

    Example:
        >>> set_title("cifar10", "near"), set_title("far", "far")
        ('cifar10 (near)', 'far')

    """
    return set_label(name) if name == nearness else f"{set_label(name)} ({nearness})"


def gallery_title(name: str) -> str:
    """Return what a gallery shows of a set.

    Example:
        >>> gallery_title("test"), gallery_title("ood_noise")
        ('ID images that look most OOD', 'noise: OOD images that look most ID')

    """
    label = set_label(name)
    return "ID images that look most OOD" if name == "test" else f"{label}: OOD images that look most ID"


def listed(parts: Sequence[str]) -> str:
    """Return parts as a list in a sentence.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a"])
        ('a, b and c', 'a')

    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def count_of_sets(count: int) -> str:
    """Return how many OOD sets there are.

    Example:
        >>> count_of_sets(4), count_of_sets(1)
        ('4 sets', '1 set')

    """
    return f"{count} set" + ("" if count == 1 else "s")


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


def share_change(before: float, after: float) -> str:
    """Return how a share went from one value to another, as far as a tenth of a per cent or more.

    Args:
        before: A share in [0, 1].
        after: Another one.

    Example:
        >>> share_change(0.25, 0.101)
        'falls from 25.0 % to 10.1 %'
        >>> share_change(0.25, 0.2501)
        'stays at 25.0 %'
        >>> share_change(0.2504, 0.2506)
        'stays at 25.0 % within 0.1 %'

    """
    first, second = f"{100 * before:.1f}", f"{100 * after:.1f}"
    if abs(after - before) < LEAST_CHANGE:
        return f"stays at {first} %" + ("" if first == second else " within 0.1 %")
    if first == second:
        first, second = f"{100 * before:.2f}", f"{100 * after:.2f}"
    return f"{'rises' if after > before else 'falls'} from {first} % to {second} %"


def fused_members(settings: Mapping[str, object]) -> tuple[str, ...]:
    """Return the scores that a detector with these settings fuses; none for the pruned head alone.

    Example:
        >>> fused_members({"members": ["gen", "vim"], "ratios": {"w_min": 0.5}}), fused_members({"shaping": None})
        (('gen', 'vim'), ())

    """
    members = settings.get("members")
    return tuple(map(str, members)) if isinstance(members, list | tuple) else ()


def chosen_ratios(settings: Mapping[str, object]) -> dict[str, float]:
    """Return the ratios in the settings of a row, empty where they are none, or those of one of several scores.

    Example:
        >>> chosen_ratios({"ratios": {"w_min": 0.3, "w_max": 0, "o_min": 0, "o_max": 0}, "score": "energy"})["w_min"]
        0.3
        >>> chosen_ratios({"ratios": "auto"}), chosen_ratios({"members": ["gen", "opnp"], "ratios": {"w_min": 0.5}})
        ({}, {})

    """
    ratios = settings.get("ratios")
    if not isinstance(ratios, Mapping) or fused_members(settings):
        return {}
    return {name: float(value) for name, value in ratios.items() if isinstance(value, int | float)}


def has_shaping(settings: Mapping[str, object] | None) -> bool:
    """Return whether the settings of a row shape the features that it scores; a fusion does for some scores only.

    Example:
        >>> has_shaping({"shaping": {"name": "scale", "quantile": 0.9}}), has_shaping({"shaping": None})
        (True, False)

    """
    return isinstance((settings or {}).get("shaping"), Mapping) and not fused_members(settings or {})


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
    values = [(name, ratios.get(name)) for name in RATIO_NAMES]
    return listed(
        [f"rho_{name} {ratio_text(value)}" for name, value in values if isinstance(value, int | float) and value > 0]
    )


def _shaping_words(shaping: object) -> str:
    if not isinstance(shaping, Mapping) or "name" not in shaping:
        return ""
    name = str(shaping["name"])
    places = listed([f"{key} {value}" for key, value in shaping.items() if key != "name"])
    return f"{_SHAPING_TITLES.get(name, name)} shaping" + (f" at {places}" if places else "")

"""Words and numbers as figures show them."""

from collections.abc import Mapping, Sequence

__all__ = [
    "METRIC_TITLES",
    "RATIO_TITLES",
    "brief_percent",
    "count_of_sets",
    "fused_members",
    "listed",
    "method_label",
    "percent",
    "ratio_text",
    "set_label",
    "set_title",
]

METRIC_TITLES = {
    "fpr95": "FPR95: OOD kept at 95 % of ID kept (%)",
    "auroc": "AUROC (%)",
}
"""Titles of axes by name of the figure."""

RATIO_TITLES = {
    "w_min": "rho_w_min: share of weights, lowest sensitivity",
    "w_max": "rho_w_max: share of weights, highest sensitivity",
    "o_min": "rho_o_min: share of neurons, lowest sensitivity",
    "o_max": "rho_o_max: share of neurons, highest sensitivity",
}
"""Titles of axes by name of the ratio."""

_SET_LABELS = {"test": "ID"}


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


def fused_members(settings: Mapping[str, object]) -> tuple[str, ...]:
    """Return the scores that a detector with these settings fuses; none for the pruned head alone.

    Example:
        >>> fused_members({"members": ["gen", "vim"], "ratios": {"w_min": 0.5}}), fused_members({"shaping": None})
        (('gen', 'vim'), ())

    """
    members = settings.get("members")
    return tuple(map(str, members)) if isinstance(members, list | tuple) else ()


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
    return _SET_LABELS.get(name, name.removeprefix("ood_").replace("_", " "))


def set_title(name: str, nearness: str) -> str:
    """Return the name of an OOD set with its nearness, unless the name says that already.

    Example:
        >>> set_title("cifar10", "near"), set_title("far", "far")
        ('cifar10 (near)', 'far')

    """
    return set_label(name) if name == nearness else f"{set_label(name)} ({nearness})"


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

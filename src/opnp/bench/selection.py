"""Which rows to compute, by the names that a person gives."""

from collections.abc import Iterable, Sequence

from opnp.bench.methods import Method
from opnp.errors import OptionError

__all__ = ["GROUP_NAMES", "chosen_methods", "includes_odin"]

GROUP_NAMES = {
    "reference": "reference",
    "baselines": "baseline",
    "combinations": "combination",
    "product": "product",
}
"""Names of the groups as they are asked for, and as they stand in a record."""

_COMPANION = "Energy-rest"


def chosen_methods(available: Sequence[Method], names: Iterable[str] | None) -> list[Method]:
    """Return the methods that some names choose, in the order of `available`.

    Args:
        available: The methods there are.
        names: Groups or families, in any case and with or without punctuation; None for all. A product row brings
            along the energy on the same samples; a row that is not offered comes by its family's name alone.

    Returns:
        The chosen methods.

    Raises:
        OptionError: If a name is unknown; the message lists the known ones.

    """
    if names is None:
        return [method for method in available if method.is_offered]
    known = {_plain(method.family): method.family for method in available}
    groups = {_plain(name): group for name, group in GROUP_NAMES.items()}
    wanted = list(names)
    unknown = [name for name in wanted if _plain(name) not in {*known, *groups}]
    if unknown or not wanted:
        families = dict.fromkeys(method.family for method in available)
        got = f"got {', '.join(map(repr, unknown))}" if unknown else "got none"
        raise OptionError(
            f"`methods` must be groups ({', '.join(GROUP_NAMES)}) or methods ({', '.join(families)}), {got}.",
        )
    chosen_groups = {groups[_plain(name)] for name in wanted if _plain(name) in groups}
    chosen_families = {known[_plain(name)] for name in wanted if _plain(name) in known}
    chosen = [
        each
        for each in available
        if each.family in chosen_families or (each.group in chosen_groups and each.is_offered)
    ]
    if any(method.group == "product" for method in chosen):
        return [each for each in available if each in chosen or each.family == _COMPANION]
    return chosen


def includes_odin(names: Iterable[str] | None) -> bool:
    """Return whether these names choose the row of ODIN where its scores are there.

    Example:
        >>> includes_odin(None), includes_odin(["baselines"]), includes_odin(["energy", "knn"])
        (True, True, False)

    """
    return names is None or any(_plain(name) in ("odin", "baselines") for name in names)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

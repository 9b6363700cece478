"""Names of classes in the order of the model that they are classes of."""

import re
import warnings
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from opnp.data.samples import shown_text
from opnp.errors import ClassOrderWarning, DataFileError

__all__ = ["labels_by_name", "model_class_names", "warn_of_ambiguous_order"]

_SHOWN = 3
_NUMBER = re.compile(r"([0-9]+)")


def model_class_names(model: object, classes: int | None = None) -> tuple[str, ...] | None:
    """Return the names of the classes that a model of transformers or timm brings, or None where it brings none.

    Those that transformers makes up, LABEL_0 and so on, are none.

    Args:
        model: The model.
        classes: Rows of its head; None for as many as it names.

    """
    table = getattr(getattr(model, "config", None), "id2label", None) or {}
    found = [table.get(label) for label in range(len(table))]
    if not found or None in found:
        found = list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or [])
        classes = classes or getattr(model, "num_classes", None)  # the configuration is that of the pretrained head
    is_made_up = all(name == f"LABEL_{label}" for label, name in enumerate(found))
    return None if is_made_up or len(found) != (classes or len(found)) else tuple(map(str, found))


def labels_by_name(
    labels: Sequence[int],
    names: Sequence[str],
    model_names: Sequence[str],
    *,
    path: Path,
    is_order_stated: bool = False,
) -> tuple[int, ...] | None:
    """Return labels as the classes of a model, found by their names; None where the model knows none of the names.

    Letters count alike in either case, and ``_`` as a blank.

    Args:
        labels: Places in `names`, one a sample.
        names: Names of the classes of the data.
        model_names: Names of the model's classes, in its order.
        path: Where the data come from, for the message.
        is_order_stated: Whether the numbers of the names were stated with the data, and not by their alphabet alone:
            then another order is refused.

    Raises:
        DataFileError: If the model knows some names and others not, or the data state another order.

    Example:
        >>> labels_by_name([0, 1, 1], ["cat", "dog"], ["Dog", "cow", "Cat"], path=Path("pets"))
        (2, 0, 0)
        >>> labels_by_name([0], ["n02123045"], ["tabby cat"], path=Path("pets")) is None
        True

    """
    place_of = {_plain(name): place for place, name in enumerate(model_names)}
    if len(place_of) < len(model_names):  # two classes of one name tell nothing
        return None
    places = [place_of.get(_plain(name)) for name in names]
    unknown = [name for name, place in zip(names, places, strict=True) if place is None]
    if len(unknown) == len(names):
        return None
    if unknown:
        raise DataFileError(
            f"{path} has {len(names)} classes, {len(unknown)} of which the model calls otherwise: {_listed(unknown)}. "
            f"The model's are {_listed(model_names)}. Name them alike, or by their index in the model."
        )
    found = [place for place in places if place is not None]
    if is_order_stated and found != [*range(len(found))]:
        raise DataFileError(
            f"{path} and the model number the same classes otherwise: {_ordered(names)} there, {_ordered(model_names)} "
            f"in the model. Put the names of the data set in the model's order, or give labels as names."
        )
    return tuple(found[label] for label in labels)


def warn_of_ambiguous_order(names: Sequence[str], *, path: Path) -> None:
    """Warn where names in the order of their letters, as they are numbered here, are in another by their numbers.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_ambiguous_order(["class10", "class2"], path=Path("digits"))
        >>> print(caught[0].message)
        digits: classes are numbered in the order of their letters, class10 before class2, and other readers count class2 first. If the model was trained so, name the folders or labels by their numbers alone.

    """  # noqa: E501  # the line is the message
    counted = sorted(names, key=_by_numbers)
    pair = next(((one, other) for one, other in zip(names, counted, strict=True) if one != other), None)
    if pair is not None:
        warnings.warn(
            f"{path}: classes are numbered in the order of their letters, {shown_text(pair[0])} before "
            f"{shown_text(pair[1])}, and other readers count {shown_text(pair[1])} first. If the model was trained so, "
            f"name the folders or labels by their numbers alone.",
            ClassOrderWarning,
            stacklevel=2,
        )


def _by_numbers(name: str) -> list[tuple[str, int]]:
    """Return a key by which class2 comes before class10."""
    texts = _NUMBER.split(name)
    return [(text, int(number)) for text, number in zip(texts[::2], [*texts[1::2], "0"], strict=True)]


def _plain(name: str) -> str:
    return name.strip().replace("_", " ").casefold()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown_text, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _ordered(names: Sequence[str]) -> str:
    shown = ", ".join(starmap("{} = {}".format, enumerate(map(shown_text, names[:_SHOWN]))))
    return shown + (", ..." if len(names) > _SHOWN else "")

"""Progress over a pass: any wrapper of iterables, such as `tqdm.tqdm` or `rich.progress.track`."""

from collections.abc import Callable, Iterable
from typing import Any

from opnp.errors import InputTypeError

__all__ = ["Progress", "shown"]

Progress = Callable[[Iterable[Any]], Iterable[Any]] | bool | None
"""A function that wraps an iterable and shows how far it is; True for a bar of rich, None or False for nothing."""


def shown(items: Iterable[Any], progress: Progress) -> Iterable[Any]:
    """Return `items`, wrapped so that `progress` sees them pass.

    Raises:
        InputTypeError: If `progress` is neither a function, a bool nor None.

    Example:
        >>> list(shown([1, 2], lambda items: (print("seen", item) or item for item in items)))
        seen 1
        seen 2
        [1, 2]

    """
    if progress is None or progress is False:
        return items
    if progress is True:
        from rich.progress import track  # noqa: PLC0415  # slow to import, and most passes show nothing

        return track(items, description="reading")
    if callable(progress):
        return progress(items)
    raise InputTypeError(
        f"`progress` must be a function that wraps an iterable, such as tqdm.tqdm, or True, got {progress!r}."
    )

"""No command writes over a file that it was given to read, or over another one that it writes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from opnp.errors import OptionError
from opnp.values.files import FEATURE_FILE

__all__ = ["require_distinct_files"]

_WRITTEN = ("out", "checkpoint", "report", "figures", "state")


def require_distinct_files(given: Mapping[str, object]) -> None:
    """Raise if a file to write is one to read, or one file is to be written for two options.

    Links are followed. Folders to read are left out: results may lie beside what they were made from, but a folder of
    features may hold no file to read that has the name of one to write.

    Args:
        given: Arguments of a command by name, paths or lists of such among them.

    Raises:
        OptionError: If two are the same; the message names both.

    Example:
        >>> require_distinct_files({"weights": Path(__file__), "out": Path("detector.safetensors")})
        >>> require_distinct_files({"out": Path("one.html"), "report": Path("one.html")})
        Traceback (most recent call last):
            ...
        opnp.errors.OptionError: `--report` names the file of `--out`, one.html: give each a name of its own.

    """
    written: dict[str, str] = {}
    for name in _WRITTEN:
        for path in _paths(given.get(name)):
            place = os.path.realpath(path)
            if place in written:
                raise OptionError(
                    f"`--{name}` names the file of `{written[place]}`, {path}: give each a name of its own."
                )
            written[place] = f"--{name}"
    for name, value in given.items():
        for path in _paths(value) if name not in _WRITTEN else ():
            place = os.path.realpath(path)
            option = written.get(place) or _over_features(place, written)
            if option is not None and os.path.isfile(place):  # noqa: PTH113  # raises nothing for names that are none
                raise OptionError(
                    f"`{option}` would write over {path}, which is given as `{name.replace('_', '-')}`: name another.",
                )


def _over_features(place: str, written: Mapping[str, str]) -> str | None:
    """Return `--out` if it is the folder of a file that has the name of one that is written there."""
    folder, name = os.path.split(place)
    return "--out" if FEATURE_FILE.fullmatch(name) and written.get(folder) == "--out" else None


def _paths(value: object) -> Iterator[Path]:
    """Return what may be a path: paths, texts, and what follows the name in texts of the form NAME=PATH."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, Path):
            yield each
        elif isinstance(each, str) and "\0" not in each:
            yield from (Path(each), Path(each.partition("=")[2]))

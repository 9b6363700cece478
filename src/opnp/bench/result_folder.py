"""Folders that results are written into: what opnp wrote there is written over, what others wrote is not."""

import os
from collections.abc import Collection
from pathlib import Path

from opnp.bench.fit_record import FIT_FILE
from opnp.bench.picture_record import PICTURES_FILE
from opnp.errors import DataFileError
from opnp.files.json_text import json_values

__all__ = ["RECORD_FILES", "own_result_folder", "require_own_results"]

RECORD_FILES = ("results.json", "sweep.json", FIT_FILE, PICTURES_FILE)
"""The records among results. A folder that holds one of them was written by opnp."""


def own_result_folder(path: str | os.PathLike[str], *, files: Collection[str]) -> Path:
    """Return the folder to write some files into, made if it does not exist; raise as `require_own_results` does."""
    require_own_results(path, files=files)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_own_results(path: str | os.PathLike[str], *, files: Collection[str]) -> None:
    """Raise if writing some files into a folder would replace one that is not opnp's.

    Args:
        path: The folder; it need not exist.
        files: Names of what is to be written.

    Raises:
        DataFileError: If it is a file, or holds one of these names and no record of opnp.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "results.json").write_text("[0.93, 0.95]")
        ...     try:
        ...         require_own_results(folder, files=["results.json", "results.md"])
        ...     except DataFileError as error:
        ...         print(str(error).removeprefix(folder))
         holds results.json, which opnp did not write: name another folder, or move the file.

    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise DataFileError(f"{folder} is a file: name a folder for the results.")
    there = [name for name in files if (folder / name).exists()]
    own = {name for name in RECORD_FILES if there and _is_record(folder / name)}
    for name in there:
        if name not in own and (name in RECORD_FILES or not own):
            raise DataFileError(
                f"{folder} holds {name}, which opnp did not write: name another folder, or move the file."
            )


def _is_record(path: Path) -> bool:
    """Return whether a file is a record of opnp, of any version."""
    try:
        found = json_values(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, MemoryError):
        return False
    return isinstance(found, dict) and "record_version" in found

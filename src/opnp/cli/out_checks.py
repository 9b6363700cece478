"""Whether what a command shall write can be written, asked before anything is computed for it."""

import os
import tempfile
from pathlib import Path

from opnp.errors import OptionError
from opnp.files import require_writable

__all__ = ["require_out_file", "require_out_folder"]


def require_out_file(*paths: Path | None) -> None:
    """Raise unless each of these files, None left out, can be begun; what is there stays as it was.

    Raises:
        MissingFileError: If a folder does not exist, or a path is a folder itself.
        OSError: If no file can be made there.

    """
    for path in paths:
        if path is not None:
            require_writable(path)


def require_out_folder(path: Path | None, *, option: str = "--out") -> None:
    """Raise unless files can be made in a folder, or, where it does not exist yet, in the nearest that does.

    Args:
        path: The folder, or None where none is to be written.
        option: The option that names it, for the message.

    Raises:
        OptionError: If it, or what it shall lie in, is a file.
        OSError: If nothing can be made there.

    """
    if path is None:
        return
    there = next((each for each in (path, *path.absolute().parents) if os.path.lexists(each)), path)
    if not there.is_dir():
        raise OptionError(f"`{option}` must be a folder, or a name for a new one, got {path}: {there} is a file.")
    with tempfile.TemporaryDirectory(dir=there, prefix=".opnp."):
        pass

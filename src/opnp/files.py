"""Files on disk: found or named as missing, and written whole or not at all."""

import os
import tempfile
from pathlib import Path

from opnp.errors import MissingFileError

__all__ = ["existing_file", "write_atomically"]


def existing_file(path: str | os.PathLike[str], *, content: str) -> Path:
    """Return `path` if it is a file, else say what was expected there.

    Args:
        path: The file.
        content: What it should hold, for the message.

    Raises:
        MissingFileError: If there is no such file, or it is a folder.

    """
    path = Path(path)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise MissingFileError(f"{path} {reason}: expected a file with {content}.")
    return path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a temporary neighbour, flush it to disk, and rename it to `path`.

    Args:
        path: File to write; an existing one is replaced.
        content: All that it shall hold.

    Raises:
        MissingFileError: If the folder does not exist.
        OSError: If it cannot be written; then nothing is left behind and an older file stays as it was.

    """
    path = Path(path)
    if not path.parent.is_dir():
        raise MissingFileError(f"{path.parent} is no folder: create it before writing {path.name} there.")
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder: name a file to write, such as {path / 'detector.safetensors'}.")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current

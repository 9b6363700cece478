"""Files on disk: found or named as missing, and written whole or not at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from opnp.errors import MissingFileError

__all__ = ["existing_file", "remove_parts", "require_writable", "write_atomically"]

_PART = ".part"


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
    """Write `content` to a temporary neighbour, flush it to disk, rename it to `path`, and flush the folder.

    Args:
        path: File to write; an existing one is replaced.
        content: All that it shall hold.

    Raises:
        MissingFileError: If the folder does not exist.
        OSError: If it cannot be written; then nothing is left behind and an older file stays as it was.

    """
    path = Path(path)
    descriptor, temporary = _opened_part(path)
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
    _flush_folder(path.parent)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise unless a file can be begun at `path`; what is there stays as it was.

    Args:
        path: File that shall be written later.

    Raises:
        MissingFileError: If the folder does not exist, or `path` is a folder.
        OSError: If no file can be made there.

    """
    descriptor, temporary = _opened_part(Path(path))
    os.close(descriptor)
    Path(temporary).unlink()


def remove_parts(path: str | os.PathLike[str]) -> None:
    """Remove what writers of `path` left half-written beside it when they were killed.

    For files that one process at a time writes: the part of a writer still at work would go as well.
    """
    path = Path(path)
    for part in path.parent.iterdir() if path.parent.is_dir() else ():
        if part.name.startswith(f".{path.name}.") and part.name.endswith(_PART):
            part.unlink(missing_ok=True)


def _opened_part(path: Path) -> tuple[int, str]:
    """Return descriptor and name of an empty file beside `path`, which shall become it."""
    if not path.parent.is_dir():
        raise MissingFileError(f"{path.parent} is no folder: create it before writing {path.name} there.")
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder: name a file to write, in it or elsewhere.")
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a rename outlasts a power cut; some file systems cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current

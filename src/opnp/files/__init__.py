"""Files on disk: found or named as missing, and written whole or not at all."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from opnp.errors import MissingFileError

__all__ = ["existing_file", "remove_parts", "require_few_rows", "require_writable", "write_atomically"]

_ALWAYS = 1 << 23
_ROWS_A_BYTE = 16
_PART = ".part"
_LONGEST = 200
"""Bytes of a name that still leave room for what a part has around it, of the 255 that file systems allow."""


def existing_file(path: str | os.PathLike[str], *, content: str) -> Path:
    """Return `path` if it is a file, or a link to one, else say what was expected there.

    Pipes and devices are none: reading them could wait, or go on, without end.

    Args:
        path: The file.
        content: What it should hold, for the message.

    Raises:
        MissingFileError: If there is no such file, or it is a folder, a pipe or a device.

    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        reason = "is a folder" if path.is_dir() else _why_no_file(path)
    except OSError as error:  # such as a name that is too long, or a folder that may not be looked into
        reason = f"cannot be opened ({error.strerror})"
    raise MissingFileError(f"{path} {reason}: expected a file with {content}.")


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a temporary neighbour, flush it to disk, rename it to `path`, and flush the folder.

    A link stays: the file that it points to is written.

    Args:
        path: File to write; an existing one is replaced.
        content: All that it shall hold.

    Raises:
        MissingFileError: If the folder does not exist, or `path` is a folder, a pipe or a device.
        OSError: If it cannot be written; then nothing is left behind and an older file stays as it was.

    """
    target, part = _begun_part(Path(path))
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say whose file did not fit
            error.filename = str(path)
        raise
    with suppress(OSError):  # so that the rename outlasts a power cut; some file systems cannot flush a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise unless a file can be begun at `path`; what is there stays as it was.

    Args:
        path: File that shall be written later.

    Raises:
        MissingFileError: If the folder does not exist, or `path` is a folder, a pipe or a device.
        OSError: If no file can be made there.

    """
    _, part = _begun_part(Path(path))
    part.unlink()


def remove_parts(path: str | os.PathLike[str]) -> None:
    """Remove what writers of `path` left half-written beside it when they were killed.

    For files that one process at a time writes: the part of a writer still at work would go as well.
    """
    path = _target(Path(path))
    for part in path.parent.iterdir() if path.parent.is_dir() else ():
        if part.name.startswith(_part_prefix(path)) and part.name.endswith(_PART):
            part.unlink(missing_ok=True)


def require_few_rows(rows: int, *, file_bytes: int) -> None:
    """Raise if a table declares more rows than can be in a file of this size: 16 a byte, where there are over 2^23.

    Equal values take next to nothing in a compressed table, so that a few bytes could fill any memory.

    Raises:
        ValueError: If so.

    Example:
        >>> require_few_rows(1_000_000, file_bytes=2_000)
        >>> require_few_rows(1_000_000_000, file_bytes=2_000)
        Traceback (most recent call last):
            ...
        ValueError: it declares 1000000000 rows in 2000 bytes

    """
    if rows > max(_ALWAYS, _ROWS_A_BYTE * file_bytes):
        message = f"it declares {rows} rows in {file_bytes} bytes"
        raise ValueError(message)


def _begun_part(path: Path) -> tuple[Path, Path]:
    """Return the file to write, and a new and empty one beside it, which shall become it."""
    target = _target(path)
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent} is no folder: create it before writing {target.name} there.")
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder: name a file to write, in it or elsewhere.")
    if path.exists() and not path.is_file():
        raise MissingFileError(f"{path} is a pipe or a device: name a file to write.")
    if target.is_symlink():
        raise MissingFileError(f"{path} is a link that leads to itself: name a file to write.")
    part = target.with_name(f"{_part_prefix(target)}{token_hex(4)}{_PART}")
    try:
        part.touch(exist_ok=False)
    except OSError as error:  # which names the part
        error.filename = str(path)
        raise
    return target, part


def _target(path: Path) -> Path:
    """Return the file that a link points to, over any number of links; what is no link as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _part_prefix(path: Path) -> str:
    """Return what the names of a file's parts begin with: its name, or a digest of one that is too long for that."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _why_no_file(path: Path) -> str:
    if path.exists():
        return "is a pipe or a device"
    return "is a link that leads nowhere" if path.is_symlink() else "does not exist"

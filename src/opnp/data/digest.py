"""Digests of files."""

import hashlib
import os
from pathlib import Path

__all__ = ["file_digest", "readable_digest"]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, or an empty text for a file that cannot be read."""
    try:
        return file_digest(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have, with a null character
        return ""

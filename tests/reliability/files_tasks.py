"""What processes of their own do in the tests of files; nothing heavy is imported for it."""

import resource
from collections.abc import Callable
from pathlib import Path

from opnp.bench.odin import read_odin
from opnp.data import read_features, read_head
from opnp.detector import OPNP
from opnp.errors import OpnpError

__all__ = ["read_with_little_memory", "save_without_end"]

READERS: dict[str, Callable[[Path], object]] = {
    "detector files": OPNP.load,
    "files of features": read_features,
    "files of heads": read_head,
    "scores of ODIN": lambda path: read_odin(path.parent),
}


def read_with_little_memory(path: Path, spare: int) -> None:
    """Read a file as each kind, with so many bytes more than there are in use; say how each was refused."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
    for name, read in READERS.items():
        try:
            read(path)
        except OpnpError as error:
            print(f"refused {name}: {error}")  # noqa: T201  # goes into the log


def save_without_end(source: Path, path: Path) -> None:
    """Write two detectors by turns, to be killed."""
    one = OPNP.load(source)
    other = one.with_ratios(one.settings.ratios)
    while True:
        one.save(path)
        other.save(path)

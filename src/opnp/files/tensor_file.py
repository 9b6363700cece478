"""Safetensors files, not believed in what they declare: views of mapped pages, no memory for what is not there."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["TensorFile", "opened_tensors"]

_LONGEST = 1 << 31


@dataclass(frozen=True, eq=False, slots=True)
class TensorFile:
    """What a safetensors file holds.

    Attributes:
        names: Names of all its tensors.
        tensors: Those that were asked for, as views of the file's pages: they change with the file.
        metadata: Texts by name.

    """

    names: frozenset[str]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def opened_tensors(path: Path, *, wanted: Collection[str] | None = None) -> TensorFile:
    """Return what a safetensors file holds.

    Args:
        path: The file.
        wanted: Names of the tensors to open, as far as they are there; None for all.

    Raises:
        ValueError: If the file cannot be read; the message says why, without the name of the file.

    """
    try:
        with _utf8_name(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            names = frozenset(file.keys())
            opened = sorted(names if wanted is None else names & frozenset(wanted))
            found = TensorFile(names, {each: file.get_tensor(each) for each in opened}, file.metadata() or {})
    # The last three: shapes and dtypes that this torch does not have.
    except (SafetensorError, OSError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(reason) from error
    for each, tensor in found.tensors.items():
        if tensor.numel() == 0 and max(tensor.shape, default=0) > _LONGEST:
            message = f"the tensor `{each[:80]}` declares {max(tensor.shape)} rows or columns of nothing"
            raise ValueError(message)
    return found


@contextmanager
def _utf8_name(path: Path) -> Iterator[str]:
    """Yield a name that safetensors takes: that of the open file, where the file's own is no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)

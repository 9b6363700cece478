"""Safetensors files: their digests, what they hold, and tensors with versioned JSON metadata in one of them.

No pickle, no code, no half-written files; what a file declares is not believed before it is there.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from opnp import __version__
from opnp.errors import ArtifactError
from opnp.files import existing_file, write_atomically
from opnp.values.reading import Value, json_values

__all__ = ["TensorFile", "opened_tensors", "read_artifact", "tensors_digest", "write_artifact"]

_METADATA_KEY = "opnp"
_LONGEST = 1 << 31


def tensors_digest(tensors: Mapping[str, Tensor | None], *, text: str = "") -> str:
    """Return the SHA-256 over names, dtypes, shapes and values of tensors, and over a text.

    Args:
        tensors: Tensors by name; the order does not matter. None counts as absent.
        text: Further content to cover.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> one = tensors_digest({"weight": torch.ones(2), "bias": None})
        >>> one == tensors_digest({"weight": torch.ones(2)}), one == tensors_digest({"weight": torch.zeros(2)})
        (True, False)

    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor is None:
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"\0{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        if plain.numel():
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        with safe_open(path, framework="pt", device="cpu") as file:
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


class _Outer(Value, frozen=True):
    """What stands in the metadata of the file: the body as text, and the digest of text and tensors."""

    body: str
    sha256: str


class _Body(Value, frozen=True):
    """What the text says."""

    kind: str
    format_version: int
    versions: Mapping[str, str]
    metadata: Mapping[str, object]


def write_artifact(
    path: str | os.PathLike[str],
    *,
    kind: str,
    format_version: int,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, object],
) -> None:
    """Write tensors and metadata to one file, which appears under its name only when it is whole.

    The same content gives the same bytes. A SHA-256 over tensors and metadata is stored beside them.

    Args:
        path: File to write; an existing one is replaced.
        kind: What the file holds, such as ``"detector"``.
        format_version: Version of the layout of `tensors` and `metadata`.
        tensors: Tensors by name, on any device.
        metadata: JSON values.

    Raises:
        OSError: If the file cannot be written; then nothing is left behind.

    """
    body = {
        "kind": kind,
        "format_version": format_version,
        "versions": {"opnp": __version__, "torch": torch.__version__},
        "metadata": dict(metadata),
    }
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"body": text, "sha256": tensors_digest(plain, text=text)}, sort_keys=True)
    write_atomically(path, save(plain, metadata={_METADATA_KEY: header}))


def read_artifact(
    path: str | os.PathLike[str],
    *,
    kind: str,
    format_version: int,
    older: Collection[int] = (),
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return (tensors, metadata) of a file that `write_artifact` wrote, after checking it whole.

    Args:
        path: File to read.
        kind: What it must hold.
        format_version: The layout that the caller understands.
        older: Other layouts that it understands; the metadata of those say ``format_version`` as well.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        MissingFileError: If there is no such file.
        ArtifactError: If it is no artifact of this kind and version, or is damaged.

    """
    path = existing_file(path, content=f"an opnp {kind}")
    try:
        found = opened_tensors(path)
    except ValueError as error:
        raise ArtifactError(f"{path} is no readable safetensors file ({error}). Write it again.") from error
    # Copies: what is checked here must not change with the file afterwards.
    tensors = {name: tensor.clone() for name, tensor in found.tensors.items()}
    header = found.metadata.get(_METADATA_KEY)
    if header is None:
        raise ArtifactError(
            f"{path} is a safetensors file, but no {kind} of opnp: it holds no opnp "
            f"metadata. Give the file that `opnp fit` or `save` wrote."
        )
    try:
        outer = msgspec.convert(json_values(header), _Outer)
        body = msgspec.convert(json_values(outer.body), _Body)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path} holds opnp metadata that cannot be read ({error!r}). Write it again.") from error
    if body.kind != kind:
        raise ArtifactError(f"{path} holds an opnp {body.kind[:40]}, not a {kind}.")
    if body.format_version not in (format_version, *older):
        raise ArtifactError(
            f"{path} has format version {body.format_version} of an opnp {kind}, written by opnp "
            f"{body.versions.get('opnp', '?')}; this opnp {__version__} reads version {format_version}. "
            f"Use a matching opnp, or write the file again.",
        )
    if tensors_digest(tensors, text=outer.body) != outer.sha256:
        raise ArtifactError(f"{path} is damaged: its content does not match its own SHA-256. Write it again.")
    told = dict(body.metadata)
    return tensors, told if body.format_version == format_version else told | {"format_version": body.format_version}

"""One safetensors file holding tensors and versioned JSON metadata. No pickle, no code, no half-written files."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import torch
from safetensors.torch import save
from torch import Tensor

from opnp.artifact.digest import tensors_digest
from opnp.errors import ArtifactError
from opnp.files import existing_file, write_atomically
from opnp.files.json_text import json_values
from opnp.files.tensor_file import opened_tensors
from opnp.files.typed_json import typed_value

__all__ = ["read_artifact", "write_artifact"]

_METADATA_KEY = "opnp"


@dataclass(frozen=True, slots=True)
class _Outer:
    """What stands in the metadata of the file: the body as text, and the digest of text and tensors."""

    body: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Body:
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
        "versions": {"opnp": version("opnp"), "torch": torch.__version__},
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
        raise ArtifactError(f"{path} is a safetensors file, but not one that opnp wrote: it holds no opnp metadata.")
    try:
        outer = typed_value(_Outer, json_values(header), name="the header")
        body = typed_value(_Body, json_values(outer.body), name="the body")
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path} holds opnp metadata that cannot be read ({error!r}). Write it again.") from error
    if body.kind != kind:
        raise ArtifactError(f"{path} holds an opnp {body.kind[:40]}, not a {kind}.")
    if body.format_version not in (format_version, *older):
        raise ArtifactError(
            f"{path} has format version {body.format_version} of an opnp {kind}, written by opnp "
            f"{body.versions.get('opnp', '?')}; this opnp {version('opnp')} reads version {format_version}. "
            f"Use a matching opnp, or write the file again.",
        )
    if tensors_digest(tensors, text=outer.body) != outer.sha256:
        raise ArtifactError(f"{path} is damaged: its content does not match its own SHA-256. Write it again.")
    told = dict(body.metadata)
    return tensors, told if body.format_version == format_version else told | {"format_version": body.format_version}

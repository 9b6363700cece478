"""One safetensors file holding tensors and versioned JSON metadata. No pickle, no code, no half-written files."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from opnp.artifact.digest import tensors_digest
from opnp.errors import ArtifactError
from opnp.files import existing_file, write_atomically

__all__ = ["read_artifact", "write_artifact"]

_METADATA_KEY = "opnp"


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
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return (tensors, metadata) of a file that `write_artifact` wrote, after checking it whole.

    Args:
        path: File to read.
        kind: What it must hold.
        format_version: The layout that the caller understands.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        MissingFileError: If there is no such file.
        ArtifactError: If it is no artifact of this kind and version, or is damaged.

    """
    path = existing_file(path, content=f"an opnp {kind}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file ({error}). Write it again.") from error
    if header is None:
        raise ArtifactError(f"{path} is a safetensors file, but not one that opnp wrote: it holds no opnp metadata.")
    try:
        outer = json.loads(header)
        text, digest = outer["body"], outer["sha256"]
        body = json.loads(text)
        found_kind, found_version, metadata = body["kind"], body["format_version"], body["metadata"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds opnp metadata that cannot be read ({error!r}). Write it again.") from error
    if found_kind != kind:
        raise ArtifactError(f"{path} holds an opnp {found_kind}, not a {kind}.")
    if found_version != format_version:
        raise ArtifactError(
            f"{path} has format version {found_version} of an opnp {kind}, written by opnp "
            f"{body.get('versions', {}).get('opnp', '?')}; this opnp {version('opnp')} reads version {format_version}. "
            f"Use a matching opnp, or write the file again.",
        )
    if tensors_digest(tensors, text=text) != digest:
        raise ArtifactError(f"{path} is damaged: its content does not match its own SHA-256. Write it again.")
    return tensors, metadata

"""Tensors and versioned metadata in one safetensors file."""

from opnp.artifact.digest import tensors_digest
from opnp.artifact.file import read_artifact, write_artifact

__all__ = ["read_artifact", "tensors_digest", "write_artifact"]

"""The tensors of a safetensors file of images, as they lie on disk."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from opnp.errors import DataFileError

__all__ = ["image_tensors"]


def image_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return `images` and `labels` of a safetensors file, as far as they are in it, and the names of all its tensors.

    Raises:
        DataFileError: If it cannot be read.

    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            held = sorted(file.keys())
            return {name: file.get_tensor(name) for name in held if name in ("images", "labels")}, held
    except (SafetensorError, OSError) as error:
        raise DataFileError(
            f"{path} is no readable safetensors file ({error}): expected one with the tensor `images`, or a folder "
            f"of images.",
        ) from error

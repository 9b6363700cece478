"""Digests of tensors: the same values give the same digest, on every device and machine."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["tensors_digest"]


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

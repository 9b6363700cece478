"""Feature shards of any size without a model: features as after a ReLU, labels that a random head gives them."""

import os
from pathlib import Path

import torch

from opnp.data import FeatureShardWriter, write_head

__all__ = ["write_random_shards"]

_ROWS = 4096


def write_random_shards(
    folder: str | os.PathLike[str], *, rows: int, features: int, classes: int, seed: int = 0
) -> tuple[Path, Path]:
    """Write feature shards in float16 and a head that fits them; the same arguments give the same files.

    Args:
        folder: An existing folder.
        rows: Number of samples.
        features: Features of a sample.
        classes: Classes of the head.
        seed: Seed of everything.

    Returns:
        The folder of shards and the file of the head, both in `folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shards, head = write_random_shards(folder, rows=10, features=4, classes=3)
        ...     sorted(path.name for path in shards.iterdir()), head.name
        (['features-00000.safetensors', 'index.json'], 'head.safetensors')

    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator) / features**0.5
    shards, head = Path(folder) / "shards", Path(folder) / "head.safetensors"
    write_head(head, weight)
    with FeatureShardWriter(shards) as writer:
        for start in range(0, rows, _ROWS):
            block = torch.randn(min(_ROWS, rows - start), features, generator=generator).relu()
            writer.write(block, (block @ weight.T).argmax(1))
    return shards, head

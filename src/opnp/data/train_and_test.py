"""A folder that holds training and test samples beside each other, in the usual names."""

import os
from pathlib import Path

from opnp.errors import MissingFileError

__all__ = ["train_and_test"]

_TRAIN = ("train", "train.safetensors")
_TEST = ("test", "test.safetensors", "val", "val.safetensors")


def train_and_test(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the paths of training and test samples in a folder: ``train``, and ``test`` or else ``val``.

    Each may be a folder, or a file ending in ``.safetensors``.

    Raises:
        MissingFileError: If one is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "val"):
        ...         (Path(folder) / name).mkdir()
        ...     [part.name for part in train_and_test(folder)]
        ['train', 'val']

    """
    path = Path(path)
    found = [next((path / name for name in names if (path / name).exists()), None) for names in (_TRAIN, _TEST)]
    train, test = found
    if train is None or test is None:
        missing = "train" if train is None else "test (or val)"
        raise MissingFileError(
            f"{path} holds no {missing}: it must hold both train and test (or val), as folders or .safetensors files, "
            f"where the training samples are not named apart.",
        )
    return train, test

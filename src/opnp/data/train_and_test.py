"""A folder that holds training and test samples beside each other, in the usual names."""

import os
from pathlib import Path

from opnp.errors import MissingFileError

__all__ = ["train_and_test"]

_ENDINGS = ("", ".safetensors", ".npz", ".npy", ".csv", ".txt", ".jsonl")
_TRAIN = ("train",)
_TEST = ("test", "val", "validation")


def train_and_test(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the paths of training and test samples in a folder: ``train``, and ``test``, ``val`` or ``validation``.

    Each may be a folder, or a file of a kind that `open_inputs` reads: ``train.npz``, ``train.jsonl`` and the like.

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
    train, test = (_found(path, names) for names in (_TRAIN, _TEST))
    if train is None or test is None:
        missing = "train" if train is None else "test (or val)"
        raise MissingFileError(
            f"{path} holds no {missing}: it must hold both train and test (or val), as folders or files such as "
            f"train.safetensors, where the training samples are not named apart.",
        )
    return train, test


def _found(path: Path, names: tuple[str, ...]) -> Path | None:
    """Return what is there first, by name and then by ending."""
    candidates = (path / f"{name}{ending}" for name in names for ending in _ENDINGS)
    return next((candidate for candidate in candidates if candidate.exists()), None)

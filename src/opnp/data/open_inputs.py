"""Inputs by path: what is there decides how it is read."""

import os
from collections.abc import Callable
from pathlib import Path

from opnp.data.csv_columns import csv_header
from opnp.data.file_list import FileList
from opnp.data.image_arrays import ImageArrays
from opnp.data.image_folder import ImageFolder
from opnp.data.input_set import INPUT_FORMS, InputSet
from opnp.data.input_source import InputSource
from opnp.data.saved_dataset import SavedDataset, is_saved_dataset
from opnp.data.text_file import TextFile
from opnp.data.transform import SampleKind, Transform
from opnp.errors import DataFileError, InputTypeError, MissingFileError

__all__ = ["open_inputs"]

_READERS: dict[str, Callable[..., InputSource]] = {
    ".jsonl": TextFile.from_path,
    ".npy": ImageArrays.from_path,
    ".npz": ImageArrays.from_path,
    ".safetensors": ImageArrays.from_path,
    ".txt": FileList.from_path,
}


def open_inputs(
    path: str | os.PathLike[str], transform: Transform, *, is_strict: bool = False, is_labelled: bool = True
) -> InputSet:
    """Return the inputs at a path, made ready for a model.

    Images come from a folder, of which each subfolder is a class: names that are all numbers are the classes
    themselves, others are numbered in sorted order, and a folder without subfolders has no labels; from a list of
    files, ``.txt`` (one path a line) or ``.csv`` (``path`` or ``path,label``), relative to the list; from
    ``.safetensors`` and ``.npz`` files with `images` and perhaps `labels`, and ``.npy`` files, uint8 of shape
    ``(images, height, width, 3)`` or ``(images, height, width)``. Texts come from ``.jsonl`` and ``.csv`` files with
    `text` and perhaps `label`. Both come from data sets of Hugging Face that `save_to_disk` wrote.

    Nothing is read before it is asked for, save labels and the arrays of ``.safetensors`` and ``.npz`` files.

    Args:
        path: The folder or file.
        transform: What is done to each sample: a `Preprocessing` for images, or another `Transform`.
        is_strict: Whether the first sample that cannot be read is an error; else such ones are left out, and are in
            `unreadable` afterwards.
        is_labelled: Whether labels are read; else they may be anything, and a folder's images count at any depth,
            beside subfolders too.

    Returns:
        The inputs, in an order that does not change.

    Raises:
        MissingFileError: If there is neither.
        EmptyDataError: If nothing is in it.
        DataFileError: If it is of no such form, or cannot be read.
        InputTypeError: If these are images and the transform takes texts, or the reverse.
        MissingExtraError: If Pillow, or datasets for a data set, is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from opnp.data import Preprocessing
        >>> small = Preprocessing(size=2, resize=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("L", (3, 2), 255).save(Path(folder) / name / "1.png")
        ...     (Path(folder) / "dog" / "2.png").write_text("no image")
        ...     images = open_inputs(folder, small)
        ...     batches = list(images.batches(8))
        8
        >>> [(inputs.shape, labels) for inputs, labels in batches]
        [(torch.Size([2, 3, 2, 2]), tensor([0, 1]))]
        >>> len(images), images.unreadable
        (3, (('dog/2.png', 'no image'),))

    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: expected {INPUT_FORMS[transform.kind]}.")
    return InputSet(_source(path, transform.kind, is_labelled=is_labelled), transform, is_strict=is_strict)


def _source(path: Path, kind: SampleKind, *, is_labelled: bool) -> InputSource:
    if is_saved_dataset(path):
        return SavedDataset.from_path(path, kind, is_labelled=is_labelled)
    if path.is_dir():
        if kind == "text":
            raise InputTypeError(f"{path} is a folder, and the model takes texts: expected {INPUT_FORMS[kind]}.")
        return ImageFolder.from_path(path, is_labelled=is_labelled)
    ending = path.suffix.lower()
    if ending == ".csv":
        header = csv_header(path)
        is_of_texts = kind == "text" or ("text" in header and "path" not in header)
        reader: Callable[..., InputSource] = TextFile.from_path if is_of_texts else FileList.from_path
        return reader(path, is_labelled=is_labelled)
    if ending not in _READERS:
        raise DataFileError(f"{path} ends in {ending or 'nothing'!r}: expected {INPUT_FORMS[kind]}.")
    return _READERS[ending](path, is_labelled=is_labelled)

"""Images or texts of a data set of Hugging Face that was saved to disk: decoded one by one, when they are asked for."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from opnp.core.labels import LABEL_NAMES
from opnp.data.images import decoded_image
from opnp.data.samples import Names, SampleKind, class_labels, file_digest, label_column, require_pillow
from opnp.data.texts import checked_text
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SavedDataset", "is_saved_dataset"]

_SPLITS = "dataset_dict.json"
_FILES = ("state.json", "dataset_info.json")


@dataclass(frozen=True, eq=False, slots=True)
class SavedDataset:
    """Samples of one column of a data set, in its order.

    Attributes:
        path: Its folder.
        kind: What is in the column.
        column: Name of the column.
        data: The data set, mapped into memory, with images not decoded.
        labels: Classes from the column `label` or `labels`, or None.
        class_names: Names of the classes where the data set has them; else None.
        is_order_stated: Whether the data set itself numbers them, by a ClassLabel.

    """

    path: Path
    kind: SampleKind
    column: str
    data: Any
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None
    is_order_stated: bool = False

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], kind: SampleKind, *, is_labelled: bool = True) -> "SavedDataset":
        """Return the images or texts of a data set that `save_to_disk` wrote.

        Images are in the one column that holds images; texts in the column `text`, or in the one column of strings.

        Args:
            path: Its folder.
            kind: What the model takes.
            is_labelled: Whether labels are read; else they may be anything.

        Raises:
            DataFileError: If it cannot be read, consists of several splits, or several columns may be meant.
            InputTypeError: If it has no column of this kind.
            EmptyDataError: If it has no rows.
            MissingExtraError: If the package `datasets` is not installed, or Pillow for images.

        All of the set is read once, as Arrow checks it.

        """
        path = Path(path)
        if kind == "image":
            require_pillow()
        if find_spec("datasets") is None:
            raise MissingExtraError(
                f"{path} is a data set of Hugging Face, which needs datasets: `pip install 'opnp[hf]'`.",
            )
        import datasets

        has_splits = (path / _SPLITS).is_file()
        if not has_splits and not any(path.glob("*.arrow")):  # which the package itself stumbles over
            raise EmptyDataError(f"{path} has no rows.")
        try:
            data = datasets.load_from_disk(str(path.resolve())).with_format(None)
            if not has_splits:
                data.data.table.validate(full=True)  # Arrow ends the process where offsets lead out of a damaged file
        except Exception as error:  # Arrow, JSON and the package itself fail in their own ways
            reason = str(error).partition("\n")[0]
            raise DataFileError(f"{path} is no readable data set ({type(error).__name__}: {reason}).") from error
        if has_splits:
            first = path / next(iter(data), "train")
            raise DataFileError(f"{path} holds the splits {', '.join(data)}: give one of them, such as {first}.")
        if len(data) == 0:
            raise EmptyDataError(f"{path} has no rows.")
        label = label_column(path, data.features) if is_labelled else None
        column = _column(path, data.features, kind)
        if kind == "image":
            data = data.cast_column(column, datasets.Image(decode=False))
        labels, class_names = (None, None) if label is None else _labels(path, data, label)
        is_stated = label is not None and isinstance(data.features[label], datasets.ClassLabel)
        return cls(path, kind, column, data.select_columns([column]), labels, class_names, is_stated)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data)

    @property
    def names(self) -> Names:
        """Rows of the data set."""
        return Names(len(self.data), str)

    def sample(self, index: int) -> Union["Image", str]:
        """Return an image of 8 bits a channel, decoded and turned as its orientation tag says, or a text.

        Raises:
            DataFileError: If there is none in the row; the message is the reason alone.

        """
        try:
            value = self.data[index][self.column]
        except Exception as error:  # a damaged file makes Arrow fail in many ways, SystemError among them
            raise DataFileError(f"the row cannot be read ({type(error).__name__})") from error
        if self.kind == "text":
            return checked_text(value)
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise DataFileError("no image")
        from PIL import ImageOps

        return ImageOps.exif_transpose(decoded_image(Path(value["path"]) if value["bytes"] is None else value["bytes"]))

    def digest(self) -> str:
        """Return the SHA-256 over the files of the data set."""
        digest = hashlib.sha256()
        for file in sorted([*self.path.glob("*.arrow"), self.path / "dataset_info.json"]):
            digest.update(f"{file.name}\0{file_digest(file)}\n".encode())
        return digest.hexdigest()


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`, of one split or of several."""
    return (path / _SPLITS).is_file() or all((path / name).is_file() for name in _FILES)


def _column(path: Path, features: Any, kind: SampleKind) -> str:  # noqa: ANN401  # the package ships no types
    """Return the name of the column of samples."""
    import datasets

    kinds = (datasets.Image,) if kind == "image" else (datasets.Value,)
    found = [name for name, feature in features.items() if isinstance(feature, kinds) and name not in LABEL_NAMES]
    if kind == "text":
        found = [name for name in found if features[name].dtype in ("string", "large_string")]
        found = ["text"] if "text" in found else found
    if not found:
        raise InputTypeError(
            f"{path} has no column of {kind}s, and the model takes {kind}s: it has {', '.join(features)}."
        )
    if len(found) > 1:
        raise DataFileError(
            f"{path} has several columns of {kind}s, {', '.join(found)}: save it with one of them, by "
            f"`select_columns`, beside `label`.",
        )
    return str(found[0])


def _labels(path: Path, data: Any, name: str) -> tuple[Sequence[int] | None, tuple[str, ...] | None]:  # noqa: ANN401  # as above
    """Return the classes, and their names if there are any; -1 means missing, as in test splits."""
    import datasets

    feature = data.features[name]
    values = data[name][:]
    if not isinstance(feature, datasets.ClassLabel):
        return class_labels(values, path=path)
    numbers, _ = class_labels(values, path=path)
    return numbers, None if numbers is None else tuple(feature.names)

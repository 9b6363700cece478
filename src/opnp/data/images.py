"""Images as a data set of torch: a folder or a safetensors file, each image made ready for the model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from opnp.data.image_batches import ImageBatches
from opnp.data.image_folder import ImageFolder
from opnp.data.image_tensors import ImageTensors
from opnp.data.preprocessing import Preprocessing
from opnp.errors import MissingFileError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageSet", "ImageSource", "read_images"]


class ImageSource(Protocol):
    """Images on disk, in a fixed order."""

    @property
    def path(self) -> Path:
        """Where they are."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Their classes, or None."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where their order made the numbers; else None."""

    def __len__(self) -> int:
        """Return how many there are."""

    def image(self, index: int) -> "Image":
        """Return one."""

    def digest(self) -> str:
        """Return the SHA-256 of them all."""


class ImageSet(Dataset[object]):
    """Images made ready for a model: items are ``(input, label)``, or inputs alone where there are no labels.

    Args:
        source: The images.
        preprocessing: What is done to each.

    """

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        """Keep the arguments."""
        self.source = source
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        """Return one input, with its label where that is known.

        Raises:
            DataFileError: If the image cannot be read.

        """
        if not -len(self) <= index < len(self):
            message = f"index {index} of {len(self)} images"
            raise IndexError(message)  # ends a loop over the set
        inputs = self.preprocessing(self.source.image(index))
        return inputs if self.source.labels is None else (inputs, self.source.labels[index])

    @property
    def labels(self) -> Tensor | None:
        """Classes of the images, shape ``(images,)``, int64, or None."""
        labels = self.source.labels
        return None if labels is None else torch.tensor(labels, dtype=torch.int64)

    def batches(
        self, batch_size: int, *, rows: range | None = None, workers: int = 0, is_pinned: bool = False
    ) -> ImageBatches:
        """Return the batches of all images in their order; torch's global random state is left alone.

        Args:
            batch_size: Images a batch.
            rows: Which images; None for all.
            workers: Processes that read and prepare images ahead of time; 0 to do so here. The batches are the same.
            is_pinned: Whether batches lie in page-locked memory, for a CUDA device.

        Raises:
            OptionError: If `batch_size` is below 1, or `workers` below 0.

        """
        return ImageBatches(
            self, range(len(self)) if rows is None else rows, batch_size, workers=workers, is_pinned=is_pinned
        )


def read_images(path: str | os.PathLike[str], preprocessing: Preprocessing) -> ImageSet:
    """Return the images of a folder, or of a safetensors file with `images` and perhaps `labels`.

    Of a folder, each subfolder is a class: names that are all numbers are the classes themselves, others are numbered
    in sorted order. A folder without subfolders has no labels.

    Args:
        path: The folder or file.
        preprocessing: What is done to each image.

    Returns:
        The images, in an order that does not change.

    Raises:
        MissingFileError: If there is neither.
        EmptyDataError: If there is no image.
        DataFileError: If the file cannot be read, or the folder is not as described.
        MissingExtraError: If Pillow is not installed.

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
        ...     images = read_images(folder, small)
        ...     inputs, label = images[1]
        >>> len(images), inputs.shape, label
        (2, torch.Size([3, 2, 2]), 1)

    """
    path = Path(path)
    if path.is_dir():
        return ImageSet(ImageFolder.from_path(path), preprocessing)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: expected a folder of images, or a safetensors file with them.")
    return ImageSet(ImageTensors.from_path(path), preprocessing)

"""Samples: their kind, names, classes and digests, and how an image becomes what a model takes.

An image is resized, cropped, scaled to [0, 1] and normalised, as the model expects it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from opnp.core.labels import LABEL_NAMES, NO_LABEL, class_indices, label_name
from opnp.errors import DataFileError, MissingExtraError, OpnpError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Interpolation",
    "ModelInputs",
    "Names",
    "Preprocessing",
    "SampleKind",
    "Transform",
    "channel_std",
    "class_index",
    "class_labels",
    "column_names",
    "file_digest",
    "label_column",
    "label_indices",
    "printable_name",
    "readable_digest",
    "require_area",
    "require_pillow",
    "shown_text",
]

_READ_COLUMNS = ("path", "text", *LABEL_NAMES)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_LARGEST = 2**63 - 1
_KINDS = (int, float, str, type(None))
_SHOWN = 160


@dataclass(frozen=True, eq=False, slots=True)
class Names(Sequence[str]):
    """Names that are made when they are asked for.

    Attributes:
        length: How many there are.
        name: The name of a row.

    Example:
        >>> names = Names(3, "row {}".format)
        >>> len(names), names[-1], list(names[:2])
        (3, 'row 2', ['row 0', 'row 1'])

    """

    length: int
    name: Callable[[int], str]

    def __len__(self) -> int:
        """Return their number."""
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return one name, or some."""
        rows = range(self.length)[index]
        return self.name(rows) if isinstance(rows, int) else [self.name(row) for row in rows]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, or an empty text for a file that cannot be read."""
    try:
        return file_digest(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have, with a null character
        return ""


def printable_name(name: str) -> str:
    r"""Return a name as it is, or, where it is no UTF-8, with escapes for the bytes that are none.

    Example:
        >>> print(printable_name("große.png"), printable_name("\udcff.png"))
        große.png \xff.png

    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown_text(text: str) -> str:
    r"""Return a text of any content for a message: with escapes for what steers a terminal, and cut where it is long.

    Example:
        >>> print(shown_text("große.png"), shown_text("a\x1b[31m\nb"), len(shown_text("x" * 10**6)))
        große.png a\x1b[31m\nb 163

    """
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[: _SHOWN + 1])
    return shown if len(text) <= _SHOWN else f"{shown[:_SHOWN]}..."


def column_names(path: Path, fields: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns without blanks around them, in small letters.

    Args:
        path: The file, for the message.
        fields: The names as they stand there.

    Raises:
        DataFileError: If two columns that are read have the same name.

    Example:
        >>> column_names(Path("list.csv"), ["Path", " label"])
        ('path', 'label')

    """
    names = tuple(field.strip().casefold() for field in fields)
    double = next((name for name in _READ_COLUMNS if names.count(name) > 1), None)
    if double is not None:
        raise DataFileError(f"{path} has {names.count(double)} columns called `{double}`: one can be read.")
    return names


def label_column(path: str | os.PathLike[str], names: Iterable[object]) -> str | None:
    """Return the name that labels go by in a file, or None if there are none.

    Raises:
        DataFileError: If there are two.

    """
    try:
        return label_name(names, where=str(path))
    except OptionError as error:
        raise DataFileError(str(error)) from None


def label_indices(labels: object, *, path: str | os.PathLike[str]) -> Tensor:
    """Return the labels of an array as class indices, by `class_indices`.

    Raises:
        DataFileError: If they are of a kind that names no class.

    """
    try:
        return class_indices(labels)
    except OpnpError as error:
        raise DataFileError(f"{path}: {error}") from None


def class_labels(given: Sequence[object], *, path: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Return labels as class indices, and the names that were numbered in sorted order, each None if there are none.

    Args:
        given: One label a sample: whole numbers, or texts of them, are the classes themselves, one-hot lists their
            places, other texts names. None, empty texts and -1 are missing.
        path: Where they come from, for the message.

    Raises:
        DataFileError: If some are missing and others not, one is of another kind or no whole number, some are numbers
            and some names, or a number needs more than 64 bits.

    Example:
        >>> class_labels(["7", 0, "2.0"], path=Path("list.csv"))
        ((7, 0, 2), None)
        >>> class_labels(["dog", "cat", "dog"], path=Path("list.csv"))
        ((1, 0, 1), ('cat', 'dog'))
        >>> class_labels([None, "", -1], path=Path("list.csv"))
        (None, None)

    """
    if given and all(isinstance(label, list) for label in given):
        return tuple(label_indices(given, path=path).tolist()), None
    wrong = next((each for each in given if isinstance(each, bool) or not isinstance(each, _KINDS)), None)
    if wrong is not None:
        raise DataFileError(f"{path}: labels must be integers or names of classes, got {shown_text(repr(wrong))}.")
    texts = ["" if label is None else str(label) for label in given]
    is_missing = [text == "" or text == str(NO_LABEL) or text == f"{NO_LABEL}.0" for text in texts]
    if all(is_missing):
        return None, None
    if any(is_missing):
        raise DataFileError(
            f"{path}: {sum(is_missing)} of {len(given)} labels are missing: give all of them, or none.",
        )
    is_number = [
        _NUMBER.fullmatch(text) is not None or isinstance(label, float)
        for text, label in zip(texts, given, strict=True)
    ]
    if all(is_number):
        return tuple(class_index(text, path=path) for text in texts), None
    if any(is_number):
        number, name = (shown_text(repr(given[is_number.index(wanted)])) for wanted in (True, False))
        raise DataFileError(
            f"{path}: labels must be numbers of classes or names of them, got both, such as {number} and {name}. "
            f"Where the first line names the columns, call them `path` (or `text`) and `label`.",
        )
    names = tuple(sorted(set(texts)))
    number_of = {name: number for number, name in enumerate(names)}
    return tuple(number_of[text] for text in texts), names


def class_index(label: object, *, path: Path) -> int:
    """Return a whole number, or a text of one, as a class index of 64 bits.

    Raises:
        DataFileError: If it is larger, below 0, or not whole.

    Example:
        >>> class_index("007", path=Path("list.csv")), class_index(2.0, path=Path("list.csv"))
        (7, 2)

    """
    text = str(label)
    digits = text.partition(".")[0]
    if _WHOLE.fullmatch(text) is None:
        raise DataFileError(f"{path}: labels must be integers or names of classes, got {shown_text(text)}.")
    if len(digits) > 1000 or not abs(int(digits)) <= _LARGEST:  # Python refuses to read very long numbers
        raise DataFileError(f"{path}: labels must be numbers of classes, below 2^63, got {shown_text(text)}.")
    if int(digits) < 0:
        raise DataFileError(f"{path}: labels must be numbers of classes, counted from 0, or -1 for none, got {digits}.")
    return int(digits)


# ------------------------------------------------------------------------------------------------------ transforms
SampleKind = Literal["image", "text"]
"""What a sample is: an image of Pillow, or a text."""

ModelInputs = Tensor | Mapping[str, Tensor]
"""What a model takes: a tensor, or tensors by the names of its arguments."""


@runtime_checkable
class Transform(Protocol):
    """From samples to the inputs of a model.

    A transform of images that divides the channels by standard deviations says so by an attribute `std`, a tuple of one
    number a channel: what works on the inputs themselves, as ODIN does, needs it.
    """

    @property
    def kind(self) -> SampleKind:
        """What it takes."""

    def __call__(self, sample: Any, /) -> ModelInputs:  # noqa: ANN401  # an image of Pillow or a text, as `kind` says
        """Return what the model takes of one sample, without a batch axis.

        Raises:
            DataFileError: If nothing can be made of this sample; its text is the reason alone.

        """

    def batch(self, items: Sequence[Any], /) -> ModelInputs:
        """Return one batch of what calls have returned: stacked, or padded to the longest."""

    def facts(self) -> Mapping[str, object]:
        """Return what the result depends on, as JSON values; it is recorded beside features."""


def channel_std(transform: Transform) -> tuple[float, ...] | None:
    """Return what a transform divides the channels of images by, or None where it does not say.

    Example:
        >>> from opnp.data import Preprocessing
        >>> channel_std(Preprocessing(size=4, resize=4, mean=(0.5,), std=(0.25,)))
        (0.25,)

    """
    std = getattr(transform, "std", None)
    if transform.kind != "image" or std is None:
        return None
    return tuple(float(value) for value in std)


Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_MOST_SIDE = 8192
"""Pixels: an input of float32 with this side takes 800 MB."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input.

    The image is resized so that its shorter side is `resize`, and the middle square of `size` pixels is cut out, with
    black around it where the image is smaller. An image that is a square of `size` already is taken as it is. Then
    pixels are divided by 255, and ``(pixel - mean) / std`` is taken channel by channel.

    Attributes:
        size: Side of the model's input in pixels.
        resize: Shorter side before the crop.
        mean: Means of the channels, in [0, 1]: three of red, green and blue, or one for a model of grey images.
        std: Standard deviations, as many.
        interpolation: Filter of the resizing, by Pillow's name for it.
        is_squashed: Whether both sides are resized to `resize`, whatever the shape of the image.

    Raises:
        OptionError: If a value is out of range.

    Example:
        >>> from PIL import Image
        >>> grey = Preprocessing(size=4, resize=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> inputs = grey(Image.new("RGB", (6, 5), (255, 0, 51)))
        >>> inputs.shape, [round(value, 4) for value in inputs[:, 0, 0].tolist()]
        (torch.Size([3, 4, 4]), [1.0, -1.0, -0.6])

    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    is_squashed: bool = False
    kind: ClassVar[SampleKind] = "image"

    def __post_init__(self) -> None:
        """Check the values."""
        for name, side in {"size": self.size, "resize": self.resize}.items():
            if not 1 <= side <= _MOST_SIDE:
                raise OptionError(f"`{name}` must lie in 1 to {_MOST_SIDE} pixels, got {side}.")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise OptionError(
                f"`mean` and `std` must have three values each (red, green, blue), or one each for grey inputs, got "
                f"{len(self.mean)} and {len(self.std)}.",
            )
        if not all(isfinite(value) for value in self.mean):
            raise OptionError(f"`mean` must be finite, got {self.mean}.")
        if not all(isfinite(value) and value > 0 for value in self.std):
            raise OptionError(f"`std` must be finite and above 0, got {self.std}.")
        if max(self.mean) > 1 or max(self.std) > 1:
            raise OptionError(
                f"`mean` and `std` must be of pixels in [0, 1], got {self.mean} and {self.std}. Divide values of "
                f"pixels in 0 to 255 by 255.",
            )
        if self.interpolation not in get_args(Interpolation):
            raise OptionError(
                f"`interpolation` must be one of {', '.join(get_args(Interpolation))}, got {self.interpolation!r}.",
            )

    def __call__(self, image: "Image") -> Tensor:
        """Return the model's input of an image, shape ``(channels, size, size)``, float32.

        Args:
            image: An image of Pillow, RGB or grey.

        Raises:
            DataFileError: If it is so long and thin that it has too many pixels once resized.

        """
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        image = self._cropped(self._resized(image))
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).reshape(self.size, self.size, len(self.mean))
        scaled = pixels.permute(2, 0, 1).contiguous().float() / 255
        return (scaled - torch.tensor(self.mean, device="cpu")[:, None, None]) / torch.tensor(self.std, device="cpu")[
            :, None, None
        ]

    def batch(self, items: Sequence[Tensor]) -> Tensor:
        """Return inputs as one batch, shape ``(batch, channels, size, size)``."""
        return torch.stack(list(items))

    def facts(self) -> Mapping[str, object]:
        """Return the attributes as JSON values."""
        facts: dict[str, object] = json.loads(json.dumps(asdict(self)))
        return facts

    def _resized(self, image: "Image") -> "Image":
        from PIL.Image import Resampling

        if self.is_squashed:
            both = (self.resize, self.resize)
        else:  # the longer side is rounded down, as torchvision does
            both = (self.resize * image.width // min(image.size), self.resize * image.height // min(image.size))
        require_area(*both)
        return image if both == image.size else image.resize(both, Resampling[self.interpolation.upper()])

    def _cropped(self, image: "Image") -> "Image":
        left, top = (_margin(length - self.size) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


def _margin(surplus: int) -> int:
    """Return what is cut off before the crop; less than 0 for what is added. Halves are rounded as torchvision does."""
    return round(surplus / 2) if surplus >= 0 else -(-surplus // 2)


def require_area(width: int, height: int) -> None:
    """Raise if a resized image has more pixels than Pillow takes for honest in a file.

    Raises:
        DataFileError: If so; its text is the reason alone.

    Example:
        >>> require_area(256, 341)

    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataFileError(f"too long and thin: it would be resized to {width} x {height} pixels, above {limit}")


def require_pillow() -> None:
    """Raise if Pillow, which reads and resizes images, is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    if find_spec("PIL") is None:
        raise MissingExtraError("Images need Pillow, which is not installed: `pip install 'opnp[vision]'`.")

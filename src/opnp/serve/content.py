"""From the body of a request to inputs of the model; a body names no file and no address, and nothing is fetched."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnp.data import ModelInputs, Transform
from opnp.data.images import decoded_image, image_formats
from opnp.data.texts import checked_text
from opnp.errors import DataFileError
from opnp.serve.limits import Refusal

__all__ = ["JSON_TYPE", "BodyReader", "Prepared"]

JSON_TYPE = "application/json"
_ANY_IMAGE = "application/octet-stream"
_LONGEST = 50
"""Times that an image may be as long as it is wide: where the shorter side is resized, the other grows with it."""

_NUMBERS = {int, float}


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """Inputs of one request.

    Attributes:
        inputs: Inputs of the model, one or more.
        is_list: Whether a list was sent, so that a list is answered.

    """

    inputs: tuple[ModelInputs, ...]
    is_list: bool


@dataclass(frozen=True, eq=False, slots=True)
class BodyReader:
    """Reads bodies for one model.

    Attributes:
        transform: What makes the model's inputs of images or texts.
        shape: Shape of one input that is a tensor; None for texts.
        max_pixels: Pixels of an image.
        max_inputs: Inputs of one request.

    """

    transform: Transform
    shape: tuple[int, ...] | None
    max_pixels: int
    max_inputs: int

    def prepared(self, body: bytes, content_type: str) -> Prepared:
        """Return the inputs in a body.

        Args:
            body: What was sent.
            content_type: Its content type, as the header says it.

        Raises:
            Refusal: With 415 for another content type than those of images and JSON, 422 if nothing can be made of the
                body.

        """
        kind = content_type.partition(";")[0].strip().lower()
        is_image = kind.startswith("image/") or kind == _ANY_IMAGE  # of the format the body decides
        if kind != JSON_TYPE and not (is_image and self.transform.kind == "image"):
            said = f"the content type {kind[:80]!r} is not read" if kind else "no content type is given"
            raise Refusal(415, f"{said}: send {self._wanted()}")
        if not body:
            raise Refusal(422, f"the body is empty: send {self._wanted()}")
        try:
            if is_image:
                return Prepared((self._of_image(body),), is_list=False)
            if self.shape is None:
                return self._of_texts(_parsed(body))
            return self._of_numbers(_parsed(body), self.shape)
        except DataFileError as error:
            raise Refusal(422, str(error)) from error

    def _of_image(self, body: bytes) -> ModelInputs:
        require_small_image(body, max_pixels=self.max_pixels)
        return self.transform(decoded_image(body))

    def _of_texts(self, found: object) -> Prepared:
        if isinstance(found, dict):
            if set(found) != {"text"}:
                raise DataFileError('the object must be {"text": "..."}, with nothing else in it')
            return Prepared((self.transform(checked_text(found["text"])),), is_list=False)
        if not isinstance(found, list):
            raise DataFileError(f'{{"text": "..."}} or a list of texts is needed, got {_named(found)}')
        self._require_number(found)
        return Prepared(tuple(self.transform(checked_text(text)) for text in found), is_list=True)

    def _of_numbers(self, found: object, shape: tuple[int, ...]) -> Prepared:
        is_list = _depth(found) == len(shape) + 1
        items = found if is_list and isinstance(found, list) else [found]
        self._require_number(items)
        return Prepared(tuple(_tensor(item, shape) for item in items), is_list=is_list)

    def _require_number(self, found: Sequence[object]) -> None:
        if not 1 <= len(found) <= self.max_inputs:
            raise DataFileError(f"1 to {self.max_inputs} inputs a request, got {len(found)}")

    def _wanted(self) -> str:
        if self.shape is None:
            return f'a text as {JSON_TYPE}, {{"text": "..."}}'
        shape = " x ".join(map(str, self.shape))
        return f"the bytes of a picture as image/png, image/jpeg, ..., or an array of {shape} numbers as {JSON_TYPE}"


def require_small_image(body: bytes, *, max_pixels: int) -> None:
    """Raise if a body is no image of a format that is read, or has too many pixels or an odd shape; nothing is decoded.

    Raises:
        DataFileError: If so; its text is the reason alone.

    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # of an extra

    formats = image_formats()
    try:
        with Image.open(BytesIO(body), formats=formats) as image:
            width, height = image.size
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataFileError(f"no image, or none of {', '.join(formats)}") from error
    except Exception as error:  # decoders raise whatever they come upon in damaged files
        raise DataFileError(str(error).partition("\n")[0] or type(error).__name__) from error
    if width * height > max_pixels:
        raise DataFileError(f"the image has {width} x {height} pixels, and {max_pixels} are the limit: make it smaller")
    if max(width, height) > _LONGEST * min(width, height):
        raise DataFileError(
            f"the image has {width} x {height} pixels: it may be {_LONGEST} times as long as wide, at most"
        )


def _parsed(body: bytes) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return what JSON says.

    Raises:
        DataFileError: If it is none, or holds NaN or infinities.

    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataFileError("the JSON is nested too deeply") from None
    except ValueError as error:  # of the encoding too
        raise DataFileError(f"no JSON: {str(error)[:200]}") from error


def _refuse_constant(name: str) -> float:
    raise DataFileError(f"{name} is no finite number")


def _depth(found: object) -> int:
    """Return how many lists stand at the beginning of one another."""
    depth = 0
    while isinstance(found, list):
        depth, found = depth + 1, found[0] if found else None
    return depth


def _tensor(found: object, shape: tuple[int, ...]) -> Tensor:
    """Return nested lists of numbers as float32 of a shape.

    Raises:
        DataFileError: If they have another shape, hold anything but numbers, or numbers beyond float32.

    """
    _require_shape(found, shape, place="")
    try:
        values = np.array(found, dtype=np.float64)
    except OverflowError:
        raise DataFileError("a number is too large for float32") from None
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    if not np.isfinite(small).all():
        raise DataFileError("a number is too large for float32")
    return torch.from_numpy(small)


def _require_shape(found: object, shape: tuple[int, ...], *, place: str) -> None:
    where = f" at {place}" if place else ""
    if not isinstance(found, list):
        wanted = " x ".join(map(str, shape))
        raise DataFileError(f"an array of {wanted} numbers is needed{where}, got {_named(found)}")
    if len(found) != shape[0]:
        raise DataFileError(f"{shape[0]} entries are needed{where}, got {len(found)}")
    if len(shape) == 1:
        if not set(map(type, found)) <= _NUMBERS:
            other = next(value for value in found if type(value) not in _NUMBERS)
            raise DataFileError(f"numbers are needed{where}, got {_named(other)}")
        return
    for index, part in enumerate(found):
        _require_shape(part, shape[1:], place=f"{place}[{index}]")


def _named(value: object) -> str:
    """Return what a JSON value is called."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        float: "a number",
    }
    names |= {int: "a number", type(None): "null"}
    return names[type(value)]

"""The inputs that are most easily mistaken, as thumbnails: ID that looks most OOD, and OOD that looks most ID."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from opnp.bench.picture_record import BEYOND, GalleryItem, GallerySet

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageVerdicts", "gallery_set", "thumbnail"]

GALLERY_ITEMS = 12
_SIDE = 96
_SMALL = 32


@dataclass(frozen=True, eq=False, slots=True)
class ImageVerdicts:
    """What a detector says of some images of a set; all tensors have shape ``(samples,)``.

    Attributes:
        index: Rows of the set.
        score: Larger = more OOD.
        predicted_class: Classes that the original head answers.
        p_value: Conformal p-values, or None.
        is_ood: Verdicts, or None.
        label: True classes, or None.

    """

    index: Tensor
    score: Tensor
    predicted_class: Tensor
    p_value: Tensor | None = None
    is_ood: Tensor | None = None
    label: Tensor | None = None


def gallery_set(
    name: str,
    verdicts: ImageVerdicts,
    *,
    image_of: Callable[[int], "Image"],
    name_of: Callable[[int], str],
    class_names: Sequence[str] | None = None,
    count: int = GALLERY_ITEMS,
) -> GallerySet:
    """Return the images of a set with the largest scores, if it is ``test``, or the smallest, if it is OOD.

    Args:
        name: ``test`` or ``ood_*``.
        verdicts: What the detector says of each.
        image_of: The image of a row.
        name_of: The name of a row.
        class_names: Names of the model's classes, where they are known.
        count: How many images, at most.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> zeros = torch.zeros(3, dtype=torch.int64)
        >>> found = gallery_set(
        ...     "ood_noise",
        ...     ImageVerdicts(torch.arange(3), torch.tensor([0.5, -1.0, 2.0]), zeros),
        ...     image_of=lambda row: Image.new("L", (8, 8), row),
        ...     name_of="image {}".format,
        ...     count=2,
        ... )
        >>> [(item.name, item.score) for item in found.items]
        [('image 1', -1.0), ('image 0', 0.5)]

    """
    order = verdicts.score.argsort(descending=name == "test", stable=True)[:count].tolist()
    return GallerySet(set=name, items=tuple(_item(verdicts, place, image_of, name_of, class_names) for place in order))


def thumbnail(image: "Image") -> str:
    """Return an image as a data URI, at most 96 pixels a side; one of fewer than 32 is enlarged in whole steps."""
    from PIL.Image import Resampling

    image = image.convert("RGB")
    if max(image.size) < _SMALL:
        step = _SIDE // max(image.size)
        image = image.resize((image.width * step, image.height * step), Resampling.NEAREST)
    else:
        image.thumbnail((_SIDE, _SIDE), Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _item(
    verdicts: ImageVerdicts,
    place: int,
    image_of: Callable[[int], "Image"],
    name_of: Callable[[int], str],
    class_names: Sequence[str] | None,
) -> GalleryItem:
    row, predicted = int(verdicts.index[place]), int(verdicts.predicted_class[place])
    return GalleryItem(
        name=name_of(row),
        index=row,
        score=min(float(verdicts.score[place]), BEYOND),
        p_value=None if verdicts.p_value is None else float(verdicts.p_value[place]),
        is_ood=None if verdicts.is_ood is None else bool(verdicts.is_ood[place]),
        predicted_class=predicted,
        predicted_name=None if class_names is None or predicted >= len(class_names) else class_names[predicted],
        true_class=None if verdicts.label is None else int(verdicts.label[place]),
        image=thumbnail(image_of(row)),
    )

"""Thumbnails for the page: checked, described, and no more of them than fit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opnp.errors import DataFileError
from opnp.report.tables import Column, Row, Table, text_cell
from opnp.report.wording import gallery_title, percent
from opnp.values.pictures import BEYOND, GalleryItem, GallerySet

__all__ = ["Gallery", "Thumbnail", "fitting_galleries", "galleries"]

_IMAGE = re.compile(r"data:image/(?:gif|jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One input.

    Attributes:
        image: Data URI of a picture without script.
        alt: What it is, for readers who do not see it.
        name: Name of its file, or its place in one.
        texts: Score, p-value, the class that the original head answers and its label, as far as they are known.
        verdict: ``flagged``, ``kept`` or ``not calibrated``.
        members: What each member of a fusion says, the least p-value first; None where that is not recorded.

    """

    image: str
    alt: str
    name: str
    texts: tuple[str, ...]
    verdict: str
    members: Table | None


@dataclass(frozen=True, slots=True)
class Gallery:
    """The inputs of a set that are most easily taken for the other kind.

    Attributes:
        title: What they are.
        thumbnails: The most mistaken first.
        left_out: How many the record has beyond these.

    """

    title: str
    thumbnails: tuple[Thumbnail, ...]
    left_out: int = 0


def galleries(sets: Sequence[GallerySet]) -> tuple[Gallery, ...]:
    """Return the galleries of a record that hold an image: ID first.

    Raises:
        DataFileError: If an image is no data URI of a GIF, JPEG, PNG or WebP picture.

    Example:
        >>> item = GalleryItem("a.png", 0, -3.25, 0.5, False, 1, "cat", None, "data:image/png;base64,aGk=")
        >>> [gallery] = galleries([GallerySet("ood_noise", (item,))])
        >>> gallery.title, gallery.thumbnails[0].alt
        ('noise: OOD images that look most ID', 'a.png, score -3.25, answered as cat, kept')

    """
    ordered = sorted((each for each in sets if each.items), key=lambda each: each.set != "test")
    return tuple(Gallery(gallery_title(each.set), tuple(map(_thumbnail, each.items))) for each in ordered)


def fitting_galleries(found: Sequence[tuple[Gallery, ...]], *, most_bytes: int) -> list[tuple[Gallery, ...]]:
    """Return galleries whose images together take at most so many bytes: the last thumbnails of each are left out.

    Args:
        found: Galleries by model.
        most_bytes: What there is room for.

    """
    most = max((len(each.thumbnails) for model in found for each in model), default=0)
    while True:
        cut = [
            tuple(
                replace(each, thumbnails=each.thumbnails[:most], left_out=max(len(each.thumbnails) - most, 0))
                for each in model
            )
            for model in found
        ]
        size = sum(len(item.image) for model in cut for each in model for item in each.thumbnails)
        if size <= most_bytes or most == 0:
            return cut
        most -= 1


def _thumbnail(item: GalleryItem) -> Thumbnail:
    if not _IMAGE.fullmatch(item.image):
        raise DataFileError(
            f"The picture of {item.name!r} is no image as a data URI (data:image/png;base64,...): make the pictures "
            f"again."
        )
    answer = item.predicted_name or f"class {item.predicted_class}"
    verdict = {True: "flagged", False: "kept", None: "not calibrated"}[item.is_ood]
    score = "infinite" if item.score >= BEYOND else f"{item.score:.4g}"
    texts = [f"score {score}", f"answer: {answer}"]
    if item.p_value is not None:
        texts.insert(1, f"p-value {item.p_value:.3g}")
    if item.true_class is not None:
        truth = "the same" if item.true_class == item.predicted_class else f"class {item.true_class}"
        texts.append(f"label: {truth}")
    return Thumbnail(
        image=item.image,
        alt=f"{item.name}, score {score}, answered as {answer}, {verdict}",
        name=item.name,
        texts=tuple(texts),
        verdict=verdict,
        members=_members_table(item) if item.members else None,
    )


def _members_table(item: GalleryItem) -> Table:
    rows = [
        (member.name, f"{member.p_value:.2g}", percent(member.share, 0))
        for member in sorted(item.members, key=lambda member: member.p_value)
    ]
    columns = Column("score", is_number=False), Column("p-value"), Column("share")
    return Table(f"Members for {item.name}", "", columns, tuple(Row(tuple(map(text_cell, row))) for row in rows))

"""Lists of image files: in their order, relative to the list, with labels or without."""

from pathlib import Path

import pytest
import torch

from opnp.data import InputSet, open_inputs
from opnp.errors import DataFileError, EmptyDataError
from tests.unit.data.image_files import PLAIN, pixels, save_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images a, b and c of a subfolder, and a place for lists beside it."""
    for seed, name in enumerate("abc"):
        save_image(tmp_path / "some images" / f"{name}.png", pixels(1, seed=seed)[0])
    (tmp_path / "lists").mkdir()
    return tmp_path


def listed(folder: Path, content: str, *, ending: str = "csv", is_strict: bool = False) -> InputSet:
    path = folder / "lists" / f"some.{ending}"
    path.write_text(content, encoding="utf-8")
    return open_inputs(path, PLAIN, is_strict=is_strict)


def order(images: InputSet) -> list[int]:
    """Return which of the three images each input is."""
    known = [pixels(1, seed=seed)[0].permute(2, 0, 1).float() / 255 for seed in range(3)]
    batches = list(images.batches(2))
    inputs = torch.cat([batch[0] if isinstance(batch, tuple) else batch for batch in batches])
    return [next(index for index, image in enumerate(known) if torch.equal(image, each)) for each in inputs]


def test_one_path_a_line(folder: Path) -> None:
    absolute = folder / "some images" / "a.png"
    images = listed(folder, f"\ufeff../some images/c.png\r\n\n  {absolute}\n../some images/c.png", ending="txt")
    assert order(images) == [2, 0, 2]
    assert images.labels is None
    assert list(images.names) == ["../some images/c.png", str(absolute), "../some images/c.png"]


@pytest.mark.parametrize(
    ("content", "labels", "names"),
    [
        ("../some images/b.png\n../some images/a.png\n", None, None),
        ("../some images/b.png,7\n\n../some images/a.png, 0\n", [7, 0], None),
        ('"../some images/b.png",dog\n../some images/a.png,"a, b"\n', [1, 0], ("a, b", "dog")),
        ("path,label\n../some images/b.png,1\n../some images/a.png,2\n", [1, 2], None),
        ("note,label,path,text\nx,1,../some images/b.png,t\ny,2,../some images/a.png,t\n", [1, 2], None),
        ("path\n../some images/b.png\n../some images/a.png\n", None, None),
        ("path,label\n../some images/b.png,\n../some images/a.png\n", None, None),
    ],
)
def test_tables(folder: Path, content: str, labels: list[int] | None, names: tuple[str, ...] | None) -> None:
    images = listed(folder, content)
    assert order(images) == [1, 0]
    assert images.source.labels == (None if labels is None else tuple(labels))
    assert images.source.class_names == names


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("a.png,1\nb.png\n", DataFileError, r"some\.csv: 1 of 2 labels are missing: give all of them, or none"),
        ("a.png,1,2\n", DataFileError, r"some\.csv has 3 columns: expected path, or path and label, or a first line"),
        ("path,label\n,1\n", DataFileError, r"some\.csv: row 1 has no path"),
        ("path,label\n", EmptyDataError, r"some\.csv lists no image"),
        ("\n\n", EmptyDataError, r"some\.csv lists no image"),
    ],
)
def test_lists_of_another_form(folder: Path, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        listed(folder, content)


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_what_is_no_text(folder: Path, ending: str) -> None:
    path = folder / f"some.{ending}"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataFileError, match=rf"some\.{ending} is no readable "):
        open_inputs(path, PLAIN)


def test_files_that_are_not_there_are_unreadable(folder: Path) -> None:
    content = "../some images/b.png,1\nabsent.png,0\n../lists,0\n../some images/a.png,2\n"
    images = listed(folder, content)
    assert order(images) == [1, 0]
    assert images.unreadable == (("absent.png", "No such file or directory"), ("../lists", "Is a directory"))
    assert images.labels is not None
    assert images.labels[images.readable].tolist() == [1, 2]
    with pytest.raises(DataFileError, match=r"some\.csv: absent\.png cannot be read \(No such file.*\): mend"):
        order(listed(folder, content, is_strict=True))


def test_the_digest_is_of_list_and_files(folder: Path) -> None:
    def digest(label: int) -> str:
        return listed(folder, f"../some images/b.png,{label}\nabsent.png,0\n").source.digest()

    before = digest(1)
    assert digest(1) == before
    assert digest(2) != before
    save_image(folder / "lists" / "absent.png", pixels(1)[0])
    present = digest(1)
    assert present != before
    save_image(folder / "lists" / "absent.png", pixels(1, seed=9)[0])
    assert digest(1) not in {present, before}

"""Sets of inputs: what cannot be read is left out, listed and counted, the same way from every process."""

from pathlib import Path

import pytest
import torch

from opnp.data import InputSet, Preprocessing, Transform, channel_std, open_inputs, unreadable_summary
from opnp.errors import DataFileError, EmptyDataError, OptionError
from tests.unit.data.image_files import PLAIN, pixels, save_image, write_tree
from tests.unit.data.text_world import LETTERS

FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
BROKEN = (0, 3, 4, 5, 9)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder of 10 images in 2 classes, of which half are cut off."""
    folder = write_tree(tmp_path / "tree", {"0": 4, "1": 6})
    for row, file in enumerate(sorted(folder.glob("*/*.png"))):
        if row in BROKEN:
            file.write_bytes(file.read_bytes()[:100])
    return folder


def test_preprocessing_is_a_transform_and_says_what_it_does() -> None:
    transforms: list[Transform] = [PLAIN, LETTERS]
    assert all(isinstance(each, Transform) for each in transforms)
    assert [channel_std(each) for each in transforms] == [(1.0, 1.0, 1.0), None]
    assert Preprocessing(4, 5, (0.5,), (0.25,)).facts() == {
        "size": 4,
        "resize": 5,
        "mean": [0.5],
        "std": [0.25],
        "interpolation": "bilinear",
        "is_squashed": False,
    }


@FORKING
@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_left_out_of_its_batch(tree: Path, workers: int) -> None:
    inputs = open_inputs(tree, PLAIN)
    batches = list(inputs.batches(2, workers=workers))
    assert [labels.tolist() for _, labels in batches] == [[0], [0], [1, 1], [1]]
    names = ["0/000.png", "0/003.png", "1/000.png", "1/001.png", "1/005.png"]
    assert [name for name, _ in inputs.unreadable] == names
    assert all("truncated" in reason for _, reason in inputs.unreadable)
    assert tuple(inputs.reasons) == BROKEN
    assert inputs.readable.tolist() == [1, 2, 6, 7, 8]
    assert len(inputs) == 10
    assert inputs.labels is not None
    assert len(inputs.labels) == 10
    again = list(inputs.batches(2, workers=workers))  # they are known now
    assert [labels.tolist() for _, labels in again] == [[0, 0], [1, 1], [1]]
    whole, second = (torch.cat([batch for batch, _ in each]) for each in (batches, again))
    assert torch.equal(whole, second)


@FORKING
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_set_raises_the_first(tree: Path, workers: int) -> None:
    inputs = open_inputs(tree, PLAIN, is_strict=True)
    with pytest.raises(DataFileError, match=r"tree: 0/000\.png cannot be read \(.*truncated.*\): mend or remove it"):
        list(inputs.batches(4, workers=workers))
    assert inputs.unreadable == ()
    with pytest.raises(DataFileError, match=r"0/000\.png cannot be read"):
        inputs.first_batch()
    with pytest.raises(DataFileError, match=r"1/005\.png cannot be read"):
        inputs[-1]


def test_the_first_batch_counts_nothing_as_unreadable(tree: Path) -> None:
    inputs = open_inputs(tree, PLAIN)
    batch, labels = inputs.first_batch()
    assert inputs.unreadable == ()
    assert torch.equal(batch[0], next(iter(inputs.batches(2)))[0][0])
    assert labels.tolist() == [0]


def test_rows_of_which_none_can_be_read_are_no_error_but_a_whole_set_is(tree: Path) -> None:
    inputs = open_inputs(tree, PLAIN)
    assert list(inputs.batches(2, rows=range(3, 6))) == []
    assert list(inputs.batches(2, rows=range(0))) == []
    for file in tree.glob("*/*.png"):
        file.write_bytes(b"no image")
    none = open_inputs(tree, PLAIN)
    message = r"tree holds nothing to work on: 10 of 10 inputs could not be read: 0/000\.png \(no image\), .*, \.\.\.$"
    for attempt in (lambda: list(none.batches(3)), lambda: list(none.batches(3)), none.first_batch):
        with pytest.raises(EmptyDataError, match=message):
            attempt()


def test_an_error_that_is_not_about_one_input_is_raised(tree: Path) -> None:
    class Wrong(Preprocessing):
        def batch(self, items: object) -> torch.Tensor:
            message = "sizes differ"
            raise OptionError(message)

    with pytest.raises(OptionError, match="sizes differ"):
        list(InputSet(open_inputs(tree, PLAIN).source, Wrong(8, 8, (0.0,), (1.0,))).batches(4))


def test_the_summary_shows_five() -> None:
    assert unreadable_summary([], total=3) == ""
    some = [(f"{index}", "why") for index in range(6)]
    assert unreadable_summary(some[:5], total=9).endswith("3 (why), 4 (why)")
    assert unreadable_summary(some, total=9).startswith("6 of 9 inputs could not be read: 0 (why), ")
    assert unreadable_summary(some, total=9).endswith("4 (why), ...")


def test_links_that_lead_back_end_with_each_file_once(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"ant/deep": 1, "ant": 1, "bee": 1})
    elsewhere = write_tree(tmp_path, {"elsewhere": 1}) / "elsewhere"
    for link, target in {
        "ant/loop": "ant",
        "ant/deep/up": "",
        "ant/other": "bee",
        "bee/again": "bee",
        "bee/self": "bee/self",
    }.items():
        (tree / link).symlink_to(tree / target)
    (tree / "bee" / "far").symlink_to(elsewhere)
    (tree / "bee" / "far2").symlink_to(elsewhere)
    (tree / "cow").symlink_to(write_tree(tmp_path, {"herd": 2}) / "herd")
    inputs = open_inputs(tree, PLAIN)
    assert list(inputs.names) == [
        *("ant/000.png", "ant/deep/000.png", "bee/000.png", "bee/far/000.png", "cow/000.png", "cow/001.png"),
    ]
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("folder", "link", "target", "is_refused"),
    [
        ("ant", "notes.txt", "gone", False),
        ("ant", "LICENSE", ".git/annex/objects/f8/2q/MD5E-s1--a/MD5E-s1--a", False),
        ("ant", "bee", "gone", True),
        ("001.ant", "002.bee", "gone", True),
        ("001.ant", "bee", "gone", True),
    ],
)
def test_a_link_that_leads_nowhere_is_refused_where_it_may_be_a_class(
    tmp_path: Path, folder: str, link: str, target: str, *, is_refused: bool
) -> None:
    tree = write_tree(tmp_path / "tree", {folder: 2})
    (tree / link).symlink_to(target)
    if is_refused:
        with pytest.raises(DataFileError, match=f"{link}, a link that leads nowhere"):
            open_inputs(tree, PLAIN)
    else:
        assert len(open_inputs(tree, PLAIN)) == 2


def test_folders_that_are_flat_have_paths_as_names(tmp_path: Path) -> None:
    save_image(tmp_path / "flat" / "b.png", pixels(1)[0])
    save_image(tmp_path / "flat" / "a.png", pixels(1)[0])
    assert list(open_inputs(tmp_path / "flat", PLAIN).names) == ["a.png", "b.png"]

"""Data sets of Hugging Face that were saved to disk, by the real package."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from opnp.data import open_inputs
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, MissingExtraError
from tests.unit.data.image_files import PLAIN, pixels
from tests.unit.data.text_world import LETTERS, texts_of

HF: Any = datasets  # ships no types


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Keep the bars of the package out of the way."""
    HF.disable_progress_bars()
    yield
    HF.enable_progress_bars()


def saved(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write a data set, and return its folder."""
    chosen = None if features is None else HF.Features(features)
    HF.Dataset.from_dict(columns, features=chosen).save_to_disk(path, **options)
    return path


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(image.numpy()) for image in pixels(count)]


def test_images_with_names_of_classes(tmp_path: Path) -> None:
    features = {"picture": HF.Image(), "note": HF.Value("string"), "label": HF.ClassLabel(names=["dog", "ant"])}
    columns = {"picture": pictures(5), "note": ["x"] * 5, "label": [1, 0, 1, 1, 0]}
    inputs = open_inputs(saved(tmp_path / "some", columns, features, num_shards=2), PLAIN)
    ((batch, labels),) = inputs.batches(8)
    assert torch.equal(batch, pixels(5).permute(0, 3, 1, 2).float() / 255)
    assert labels.tolist() == [1, 0, 1, 1, 0]
    assert inputs.source.class_names == ("dog", "ant")
    assert list(inputs.names) == ["0", "1", "2", "3", "4"]


def test_broken_and_missing_images_are_left_out(tmp_path: Path) -> None:
    whole = pictures(1)[0]
    whole.save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    rows = [
        {"bytes": content, "path": None},
        {"bytes": content[:-90], "path": None},
        None,
        {"bytes": b"x", "path": "a"},
    ]
    features = {"image": HF.Image(), "labels": HF.Value("int8")}
    path = saved(tmp_path / "some", {"image": rows, "labels": [4, 5, 6, 7]}, features)
    inputs = open_inputs(path, PLAIN)
    ((batch, labels),) = inputs.batches(8)
    assert (len(batch), labels.tolist()) == (1, [4])
    assert [name for name, _ in inputs.unreadable] == ["1", "2", "3"]
    assert [reason for _, reason in inputs.unreadable][1:] == ["no image", "no image"]
    assert "truncated" in inputs.unreadable[0][1]


def test_texts(tmp_path: Path) -> None:
    path = saved(tmp_path / "some", {"title": ["x", "y", "z"], "text": ["a", None, "bc"], "label": ["no", "yes", "no"]})
    inputs = open_inputs(path, LETTERS)
    ((batch, labels),) = inputs.batches(8)
    assert texts_of(batch) == ["a", "bc"]
    assert labels.tolist() == [0, 0]
    assert inputs.source.class_names == ("no", "yes")
    assert inputs.unreadable == (("1", "no text"),)
    one = open_inputs(saved(tmp_path / "one", {"sentence": ["a"], "count": [1]}), LETTERS)
    assert [texts_of(batch) for batch in one.batches(1)] == [["a"]]
    assert one.labels is None


def test_labels_that_are_all_missing_are_none(tmp_path: Path) -> None:
    features = {"text": HF.Value("string"), "label": HF.ClassLabel(names=["no", "yes"])}
    for values in ([-1, -1], [None, None]):
        path = saved(tmp_path / f"{values[0]}", {"text": ["a", "b"], "label": values}, features)
        source = open_inputs(path, LETTERS).source
        assert (source.labels, source.class_names) == (None, None)
    mixed = saved(tmp_path / "mixed", {"text": ["a", "b"], "label": [0, -1]}, features)
    with pytest.raises(DataFileError, match="mixed: 1 of 2 labels are missing"):
        open_inputs(mixed, LETTERS)


def test_a_stored_format_and_shuffled_rows_change_nothing(tmp_path: Path) -> None:
    data = HF.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    data.select([2, 0]).with_format("torch", columns=["label"]).save_to_disk(tmp_path / "some")
    ((batch, labels),) = open_inputs(tmp_path / "some", LETTERS).batches(4)
    assert (texts_of(batch), labels.tolist()) == (["c", "a"], [2, 0])


def test_splits_are_refused_by_name_and_each_is_read(tmp_path: Path) -> None:
    data = HF.Dataset.from_dict({"text": ["a", "b"]})
    HF.DatasetDict({"train": data, "validation": data}).save_to_disk(tmp_path / "some")
    with pytest.raises(DataFileError, match=r"holds the splits train, validation: give one of them, .*some/train"):
        open_inputs(tmp_path / "some", LETTERS)
    assert len(open_inputs(tmp_path / "some" / "validation", LETTERS)) == 2


@pytest.mark.parametrize(
    ("columns", "transform", "error", "message"),
    [
        ({"text": ["a"]}, PLAIN, InputTypeError, "has no column of images, and the model takes images: it has text"),
        ({"n": [1], "label": ["x"]}, LETTERS, InputTypeError, "has no column of texts.*it has n, label"),
        ({"one": ["a"], "two": ["b"]}, LETTERS, DataFileError, "has several columns of texts, one, two: save it with"),
        ({"text": []}, LETTERS, EmptyDataError, "has no rows"),
    ],
)
def test_data_sets_of_another_form(
    tmp_path: Path, columns: dict[str, Any], transform: Any, error: type[Exception], message: str
) -> None:
    path = saved(tmp_path / "some", columns)
    with pytest.raises(error, match=message):
        open_inputs(path, transform)


def test_damaged_files_and_an_absent_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "some", {"text": ["a"]})
    digest = open_inputs(path, LETTERS).source.digest()
    assert open_inputs(saved(tmp_path / "same", {"text": ["b"]}), LETTERS).source.digest() != digest
    with monkeypatch.context() as patched:
        patched.setattr("opnp.data.datasets.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"some is a data set of Hugging Face.*pip install 'opnp\[hf\]'"):
            open_inputs(path, LETTERS)
    next(path.glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(DataFileError, match="some is no readable data set"):
        open_inputs(path, LETTERS)

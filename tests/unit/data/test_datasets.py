"""Data sets of Hugging Face that were saved to disk, by the real package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from opnp.data import open_inputs
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, MissingExtraError
from tests.unit.data.image_files import PLAIN, pixels, save_image, scaled
from tests.unit.data.text_world import LETTERS, texts_of

HF: Any = datasets  # ships no types
CLASSES = HF.ClassLabel(names=["dog", "ant"])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep the bars of the package out of the way."""
    HF.disable_progress_bars()
    yield
    HF.enable_progress_bars()


def saved(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write a data set, and return its folder."""
    chosen = None if features is None else HF.Features(features)
    HF.Dataset.from_dict(columns, features=chosen).save_to_disk(path, **options)
    return path


def test_images_with_names_of_classes(tmp_path: Path) -> None:
    pictures = [Image.fromarray(image.numpy()) for image in pixels(5)]
    columns = {"picture": pictures, "note": ["x"] * 5, "label": [1, 0, 1, 1, 0]}
    features = {"picture": HF.Image(), "note": HF.Value("string"), "label": CLASSES}
    inputs = open_inputs(saved(tmp_path / "some", columns, features, num_shards=2), PLAIN)
    ((batch, labels),) = inputs.batches(8)
    assert torch.equal(batch, scaled(pixels(5)))
    assert labels.tolist() == [1, 0, 1, 1, 0]
    assert inputs.source.class_names == ("dog", "ant")
    assert list(inputs.names) == ["0", "1", "2", "3", "4"]


def test_broken_and_missing_images_are_left_out(tmp_path: Path) -> None:
    content = save_image(tmp_path / "whole.png", pixels(1)[0]).read_bytes()
    rows = [{"bytes": each, "path": None} for each in (content, content[:-90], b"x")] + [None]
    features = {"image": HF.Image(), "labels": HF.Value("int8")}
    inputs = open_inputs(saved(tmp_path / "some", {"image": rows, "labels": [4, 5, 6, 7]}, features), PLAIN)
    ((batch, labels),) = inputs.batches(8)
    assert (len(batch), labels.tolist()) == (1, [4])
    assert inputs.unreadable[1:] == (("2", "no image"), ("3", "no image"))
    assert "truncated" in inputs.unreadable[0][1]


@pytest.mark.parametrize(
    ("columns", "features", "expected", "labels", "class_names"),
    [
        ({"title": ["x", "y"], "text": ["a", "bc"], "label": ["no", "yes"]}, None, ["a", "bc"], [0, 1], ("no", "yes")),
        ({"sentence": ["a", None], "count": [1, 2]}, None, ["a"], None, None),
        ({"text": ["a", "b"], "label": [-1, -1]}, {"label": CLASSES}, ["a", "b"], None, None),
        ({"text": ["a", "b"], "label": [None, None]}, {"label": CLASSES}, ["a", "b"], None, None),
        ({"text": ["a", "b"], "labels": [1.0, 0.0]}, None, ["a", "b"], [1, 0], None),
        ({"text": ["a", "b"], "labels": [[0, 1], [1, 0]]}, None, ["a", "b"], [1, 0], None),
    ],
)
def test_texts(
    tmp_path: Path, columns: Any, features: Any, *, expected: list[str], labels: object, class_names: object
) -> None:
    path = saved(tmp_path / "some", columns, features and {"text": HF.Value("string"), **features})
    inputs = open_inputs(path, LETTERS)
    (batch,) = inputs.batches(8)
    assert texts_of(batch if labels is None else batch[0]) == expected
    assert (inputs.labels if inputs.labels is None else inputs.labels.tolist()) == labels
    assert inputs.source.class_names == class_names
    assert inputs.unreadable == ((("1", "no text"),) if len(expected) == 1 else ())


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
        ({"text": ["a", "b"], "label": [0, None]}, LETTERS, DataFileError, "some: 1 of 2 labels are missing"),
        ({"text": ["a"], "label": [0], "labels": [0]}, LETTERS, DataFileError, "some holds both `labels` and `label`"),
        ({"text": ["a"], "label": [[1, 1]]}, LETTERS, DataFileError, "multi-hot"),
    ],
)
def test_data_sets_of_another_form(tmp_path: Path, columns: Any, transform: Any, error: Any, message: str) -> None:
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

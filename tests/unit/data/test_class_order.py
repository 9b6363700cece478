"""Names of classes: numbered as in the model, refused where two orders contradict each other."""

import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opnp.data import Preprocessing, open_inputs
from opnp.data.class_order import labels_by_name, model_class_names, warn_of_ambiguous_order
from opnp.errors import ClassOrderWarning, DataFileError

NAMES = ["zebra", "yak", "wolf"]
SMALL = Preprocessing(size=2, resize=2, mean=(0.5,) * 3, std=(0.5,) * 3)
HERE = Path("data")


@given(st.permutations(["a b", "c", "D", "e1", "é"]), st.lists(st.integers(0, 4), max_size=9))
def test_a_label_keeps_its_name(model_names: list[str], labels: list[int]) -> None:
    """Whatever the two orders, and however names are written."""
    names = ["A_b", "C", "d", "e1", "É"]
    found = labels_by_name(labels, names, model_names, path=HERE)
    assert found is not None
    assert [model_names[place].casefold() for place in found] == [
        names[place].casefold().replace("_", " ") for place in labels
    ]


def test_names_that_the_model_does_not_know_stay_as_they_are() -> None:
    """All of them; of some it is told which."""
    assert labels_by_name([0], ["n01", "n02"], NAMES, path=HERE) is None
    assert labels_by_name([0], ["a"], ["A", "a"], path=HERE) is None
    with pytest.raises(DataFileError, match=r"data has 2 classes, 1 of which the model calls otherwise: gnu"):
        labels_by_name([0], ["gnu", "yak"], NAMES, path=HERE)


def test_an_order_that_the_data_state_is_not_turned_in_silence() -> None:
    """Both are named."""
    assert labels_by_name([1], NAMES, NAMES, path=HERE, is_order_stated=True) == (1,)
    with pytest.raises(DataFileError, match=r"0 = wolf, 1 = yak, 2 = zebra there, 0 = zebra, 1 = yak, 2 = wolf"):
        labels_by_name([1], sorted(NAMES), NAMES, path=HERE, is_order_stated=True)


@pytest.mark.parametrize(
    ("model", "classes", "expected"),
    [
        (SimpleNamespace(config=SimpleNamespace(id2label={0: "b", 1: "a"})), 2, ("b", "a")),
        (SimpleNamespace(config=SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})), None, None),
        (SimpleNamespace(config=SimpleNamespace(id2label={0: "b", 2: "a"})), None, None),
        (SimpleNamespace(pretrained_cfg={"label_names": ["x", "y"]}), None, ("x", "y")),
        (SimpleNamespace(pretrained_cfg={"label_names": ["x", "y"]}), 3, None),
        (object(), None, None),
    ],
)
def test_names_come_from_the_model(model: object, classes: int | None, expected: tuple[str, ...] | None) -> None:
    """Of transformers and timm."""
    assert model_class_names(model, classes) == expected


@pytest.mark.parametrize("names", [["class10", "class2"], ["1a", "10a", "2a"], ["x-9", "x-10"][::-1]])
def test_readers_that_count_are_warned_of(names: list[str]) -> None:
    """Each pair is in another order by numbers."""
    with pytest.warns(ClassOrderWarning, match=f"{names[1]}|{names[2] if len(names) > 2 else names[0]}"):
        warn_of_ambiguous_order(sorted(names), path=HERE)


@pytest.mark.parametrize(
    "names", [["class1", "class2"], ["a", "b"], ["n01440764", "n01443537"], ["class02", "class10"]]
)
def test_other_names_warn_of_nothing(names: list[str]) -> None:
    """As both orders are one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_ambiguous_order(sorted(names), path=HERE)


@pytest.mark.parametrize("form", ["folder", "list", "jsonl"])
def test_every_form_of_data_follows_the_model(tmp_path: Path, form: str) -> None:
    """Folders, lists of files, and texts."""
    place = tmp_path / f"data.{form}"
    transform = SMALL
    if form == "jsonl":
        transform = SimpleNamespace(kind="text")  # type: ignore[assignment]  # nothing is transformed here
        place.write_text("".join(json.dumps({"text": "t", "label": name}) + "\n" for name in sorted(NAMES)))
    else:
        for name in NAMES:
            (tmp_path / "folder" / name).mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(tmp_path / "folder" / name / "1.png")
        place = tmp_path / "folder"
        if form == "list":
            place = tmp_path / "list.csv"
            place.write_text("path,label\n" + "".join(f"folder/{name}/1.png,{name}\n" for name in sorted(NAMES)))
    labels = open_inputs(place, transform, class_names=NAMES).labels
    assert labels is not None
    assert labels.tolist() == [2, 1, 0]
    plain = open_inputs(place, transform).labels
    assert plain is not None
    assert plain.tolist() == [0, 1, 2]


def test_a_saved_data_set_turns_images_and_states_an_order(tmp_path: Path) -> None:
    """As `datasets` decodes them, and as its ClassLabel numbers them."""
    datasets = pytest.importorskip("datasets")
    tag = Image.Exif()
    tag[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "JPEG", exif=tag)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(tmp_path / "set"))
    opened = open_inputs(tmp_path / "set", SMALL, class_names=NAMES)
    assert opened.source.sample(0).size == data[0]["image"].size == (2, 4)
    assert opened.source.class_names == tuple(NAMES)
    with pytest.raises(DataFileError, match="number the same classes otherwise"):
        open_inputs(tmp_path / "set", SMALL, class_names=sorted(NAMES))


def test_names_in_a_saved_data_set_without_an_order_are_names(tmp_path: Path) -> None:
    """A column of texts is numbered as in the model, as in any other file."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": ["wolf", "yak", "zebra"]}).save_to_disk(
        str(tmp_path / "set")
    )
    texts: Any = SimpleNamespace(kind="text")
    labels = open_inputs(tmp_path / "set", texts, class_names=NAMES).labels
    assert labels is not None
    assert labels.tolist() == [2, 1, 0]

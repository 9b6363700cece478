"""Labels and names of files: headers in any spelling, mixtures refused, names that are no UTF-8."""

import csv
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from opnp.data import open_inputs, write_score_table
from opnp.data.arrays import ImageArrays
from opnp.data.files import class_labels
from opnp.errors import DataFileError
from tests.unit.data.image_files import PLAIN, pixels, save_image, write_tree
from tests.unit.data.text_world import LETTERS


def test_the_header_of_a_list_may_be_spelled_in_any_way(tmp_path: Path) -> None:
    write_tree(tmp_path, {"x": 2})
    for header in ("path, label", " Path ,LABEL", '"path","labels"'):
        (tmp_path / "some.csv").write_text(f"{header}\nx/000.png, 7\nx/001.png, 3\n", encoding="utf-8")
        source = open_inputs(tmp_path / "some.csv", PLAIN).source
        assert (source.labels, list(source.names)) == ((7, 3), ["x/000.png", "x/001.png"])


def test_the_header_of_texts_may_be_spelled_in_any_way(tmp_path: Path) -> None:
    for header in ("text, label", "Text,Labels "):
        (tmp_path / "some.csv").write_text(f"{header}\na, 7\nb, 3\n", encoding="utf-8")
        inputs = open_inputs(tmp_path / "some.csv", LETTERS)
        assert inputs.labels is not None
        assert inputs.labels.tolist() == [7, 3]
        assert len(list(inputs.batches(2))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,label\na.png,3\nb.png,1\n", "its first line, filename,? label, is read .*none of them is `path`"),
        ("filename,label\na.png,cat\nb.png,dog\n", "none of them is `path`"),
        ("image,species\na.png,cat\nb.png,dog\n", "its first line, image, species, is read as names of columns"),
        ("a.png,3\nb.png,dog\n", "labels must be numbers of classes or names.*got both, such as '3' and 'dog'"),
        ("path,label,Label\na.png,3,4\n", "has 2 columns called `label`: one can be read"),
    ],
)
def test_lists_whose_labels_could_be_taken_wrongly(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "some.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=rf"some\.csv.*{message}"):
        open_inputs(tmp_path / "some.csv", PLAIN)


@pytest.mark.parametrize(
    "label",
    [2**63, -(2**63), "9" * 23, "7" * 5000, 10**4000],
    ids=["2^63", "-2^63", "23 digits", "5000 digits", "4000 digits"],
)
def test_numbers_of_more_than_64_bits_are_told_where_they_are_read(label: object) -> None:
    with pytest.raises(
        DataFileError, match=r"list\.csv: labels must be numbers of classes, below 2\^63, got .{1,170}$"
    ):
        class_labels([1, label], path=Path("list.csv"))
    with pytest.raises(DataFileError, match=r"got both, such as .{1,170} and 'dog'\. Where"):
        class_labels([label, "dog"], path=Path("list.csv"))


def test_large_labels_of_arrays_and_folders(tmp_path: Path) -> None:
    large = np.array([1, 2**63 + 5], dtype=np.uint64)
    np.savez(tmp_path / "some.npz", images=pixels(2).numpy(), labels=large)
    save_file({"images": pixels(2).numpy(), "labels": large}, tmp_path / "some.safetensors")
    write_tree(tmp_path / "tree", {"1" * 23: 1, "2": 1})
    for name in ("some.npz", "some.safetensors", "tree"):
        with pytest.raises(DataFileError, match=rf"{name}: labels must be numbers of classes, below 2\^63, got "):
            open_inputs(tmp_path / name, PLAIN)
        assert len(open_inputs(tmp_path / name, PLAIN, is_labelled=False)) == 2


def test_folders_of_the_same_number_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"0": 1, "00": 1, "1": 1})
    with pytest.raises(DataFileError, match="the folders 0 and 00 are the same class"):
        open_inputs(tmp_path, PLAIN)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    file = save_image(tmp_path / "tree" / "0" / "größe.png", pixels(1)[0])
    before = open_inputs(tmp_path / "tree", PLAIN).source.digest()
    content = sha256(file.read_bytes()).hexdigest()
    assert before == sha256(f"0/größe.png\0{content}\n".encode()).hexdigest()  # as of versions before
    file.rename(file.with_name(os.fsdecode(b"\xff\xfe.png")))
    inputs = open_inputs(tmp_path / "tree", PLAIN)
    assert inputs.source.digest() == sha256(b"0/\xff\xfe.png\0" + f"{content}\n".encode()).hexdigest()
    assert list(inputs.names) == ["0/\\xff\\xfe.png"]
    assert len(list(inputs.batches(2))) == 1


def test_score_tables_of_names_that_are_no_unicode(tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        write_score_table(tmp_path / f"scores.{ending}", {"name": ["\udcff.png", "größe"]})
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as table:
        names = [row["name"] for row in csv.DictReader(table)]
    assert names == parquet.read_table(tmp_path / "scores.parquet")["name"].to_pylist() == ["\\udcff.png", "größe"]


def test_a_null_character_in_a_list(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", pixels(1)[0])
    (tmp_path / "some.txt").write_text("a.png\nb\0.png\n", encoding="utf-8")
    inputs = open_inputs(tmp_path / "some.txt", PLAIN)
    assert len(inputs.source.digest()) == 64
    assert len(list(inputs.batches(2))) == 1
    assert [name for name, _ in inputs.unreadable] == ["b\0.png"]


@pytest.mark.parametrize(("name", "count"), [("some.csv", 2), ("some.jsonl", 2), ("some.npz", 2), ("tree", 4)])
def test_inputs_without_labels_may_have_any(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "some.csv").write_text("path,label\ntree/2/000.png,\ntree/2/001.png,x\n", encoding="utf-8")
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 3}\n', encoding="utf-8")
    np.savez(tmp_path / "some.npz", images=pixels(2).numpy(), labels=np.zeros(3))
    save_image(write_tree(tmp_path / "tree", {"10": 1, "2": 2, "3": 0}) / "loose.png", pixels(1)[0])
    transform = LETTERS if name.endswith("jsonl") else PLAIN
    with pytest.raises(DataFileError):
        open_inputs(tmp_path / name, transform)
    inputs = open_inputs(tmp_path / name, transform, is_labelled=False)
    assert (len(inputs), inputs.labels, inputs.source.class_names) == (count, None, None)
    (batch,) = inputs.batches(8)
    assert not isinstance(batch, tuple)
    if name == "tree":
        assert list(inputs.names) == ["loose.png", "2/000.png", "2/001.png", "10/000.png"]


def test_an_array_is_opened_in_another_process_as_it_was(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=pixels(2).numpy(), labels=np.zeros(3))
    opened, (path,) = ImageArrays.from_path(tmp_path / "some.npz", is_labelled=False).__reduce__()
    assert opened(path).labels is None

"""Texts in files: in their order, one by one from disk, broken records left out."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.data import InputSet, open_inputs
from opnp.data.texts import TextFile
from opnp.errors import DataFileError, EmptyDataError
from tests.unit.data.text_world import LETTERS, texts_of

LETTER = st.characters(codec="utf-8", exclude_characters="\0\r")


def written(path: Path, content: str, *, is_strict: bool = False) -> InputSet:
    path.write_text(content, encoding="utf-8", newline="")
    return open_inputs(path, LETTERS, is_strict=is_strict)


def texts(inputs: InputSet) -> list[str]:
    batches = (batch[0] if isinstance(batch, tuple) else batch for batch in inputs.batches(2))
    return [text for batch in batches for text in texts_of(batch)]


def test_lines_of_json(tmp_path: Path) -> None:
    content = '\ufeff{"text": "Grüße", "label": 2}\r\n\n'
    content += '{"label": "0", "text": "a\\nb", "more": 1}\n{"text": "c", "labels": 1}'
    inputs = written(tmp_path / "some.jsonl", content)
    assert texts(inputs) == ["Grüße", "a\nb", "c"]
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [2, 0, 1]
    assert list(inputs.names) == ["line 1", "line 3", "line 4"]
    assert inputs.source.class_names is None
    assert written(tmp_path / "other.jsonl", '{"text": "a"}').labels is None


@pytest.mark.parametrize("name", ["label", "labels"])
def test_numbers_that_a_table_holds_as_floats(tmp_path: Path, name: str) -> None:
    rows = "".join(f"w{row},{float(11 - row)}\n" for row in range(12))
    found = written(tmp_path / "some.csv", f"text,{name}\n{rows}").labels
    assert found is not None
    assert found.tolist() == list(range(11, -1, -1))
    with pytest.raises(DataFileError, match="both `labels` and `label`"):
        written(tmp_path / "some.jsonl", '{"text": "a", "label": 0, "labels": 1}')


def test_a_column_of_a_table(tmp_path: Path) -> None:
    content = '\ufefflabel,text\r\nbad,"two\nlines, ""quoted"""\r\n\r\ngood,Grüße\n'
    inputs = written(tmp_path / "some.csv", content)
    assert texts(inputs) == ['two\nlines, "quoted"', "Grüße"]
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [0, 1]
    assert inputs.source.class_names == ("bad", "good")
    assert list(inputs.names) == ["line 2", "line 5"]


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(st.text(LETTER), st.integers(0, 99))))
def test_any_texts_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    rows = [(text, label) for text, label in rows if text.strip()] or [("x", 0)]
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "some.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    (folder / "some.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="")
    for name in ("some.csv", "some.jsonl"):
        source = TextFile.from_path(folder / name)
        assert [source.sample(row) for row in range(len(source))] == [text for text, _ in rows]
        assert source.labels is not None
        assert list(source.labels) == [label for _, label in rows]


def test_broken_records_are_left_out_with_their_labels(tmp_path: Path) -> None:
    lines = [
        *('{"text": "a", "label": "y"}', '{"text": "b", "label"', '{"label": "x"}', '{"text": 3, "label": "x"}'),
        *('{"text": " ", "label": "x"}', "[1]", '{"text": "\\ud800"}', '{"text": "#", "label": "x"}'),
        '{"text": "c", "label": "x"}',
    ]
    inputs = written(tmp_path / "some.jsonl", "\n".join(lines))
    assert len(inputs) == 9
    assert texts(inputs) == ["a", "c"]
    reasons = dict(inputs.unreadable)
    assert list(reasons) == [f"line {number}" for number in range(2, 9)]
    assert reasons.pop("line 2").startswith("no JSON: ")
    assert list(reasons.values()) == [
        "no text",
        "a text is needed, got int",
        "the text is empty",
        'no object of JSON such as {"text": "..."}',
        "the text is no valid Unicode",
        "no code for #",
    ]
    assert inputs.labels is not None
    assert inputs.labels[inputs.readable].tolist() == [1, 0]
    with pytest.raises(DataFileError, match=r"some\.jsonl: line 2 cannot be read \(no JSON: .*\): mend or remove it"):
        texts(written(tmp_path / "some.jsonl", "\n".join(lines), is_strict=True))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "some.csv",
            "words,label\na,1\n",
            DataFileError,
            "must have a column `text`, but its first line is words",
        ),
        ("some.csv", "text,label\n", EmptyDataError, "holds no text"),
        ("some.csv", "", EmptyDataError, "holds no text"),
        ("some.csv", "text,label\na,\nb,1\n", DataFileError, "1 of 2 labels are missing"),
        ("some.csv", f"text\n{'a' * 140000}\n", DataFileError, "no readable file of texts .*field limit"),
        ("some.jsonl", "\n \n", EmptyDataError, "holds no text"),
        ("some.jsonl", '{"text": "a", "label": 0.5}', DataFileError, r"labels must be integers or names.*got 0\.5"),
        ("some.jsonl", '{"text": "a", "label": true}', DataFileError, "labels must be integers or names.*got True"),
        ("some.jsonl", '{"text": "a", "label": -9223372036854775809}', DataFileError, "got -9223372036854775809"),
    ],
)
def test_files_of_another_form(tmp_path: Path, name: str, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"{name}.*{message}"):
        written(tmp_path / name, content)


def test_a_file_that_changed_under_way_is_unreadable_and_not_read_wrongly(tmp_path: Path) -> None:
    inputs = written(tmp_path / "some.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert texts(inputs) == ["a"]
    assert inputs.unreadable == (("line 2", "the file has changed ()"),)

"""Lists, texts and scores in files of text: of any bytes, each is read as it should be or refused in one message."""

import random
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opnp.data import open_inputs
from opnp.data.tables import read_score_table
from opnp.errors import DataFileError, EmptyDataError, OpnpError
from tests.reliability.inputs_world import LINES, damaged, is_told, run_opnp, within, write_world
from tests.tried import Tried
from tests.unit.bench.image_world import class_images
from tests.unit.data.image_files import PLAIN, save_image
from tests.unit.data.text_world import LETTERS

_PIECES = (
    *(b"path", b"text", b"label", b"labels", b"score", b"p_value", b"is_ood", b"a.png", b"0", b"1", b"-1", b"0.5"),
    *(b"nan", b"inf", b"1e999", b"1e-999", b"0x10", "\u0663".encode(), b"9" * 400, b"9" * 5000, b"true", b"False"),
    *(b",", b",", b",", b"\n", b"\n", b"\r", b"\r\n", b'"', b'""', b" ", b"\t", b";", b"\0", b"\xef\xbb\xbf", b"\xff"),
    *(b"\xff\xfe", b"\xc3", "\u00fc".encode(), "\u2028".encode(), b"\\", b"{", b"}", b"[" * 2000, b":", b"null"),
    *(b'{"text": "word", "label": 3}', b'{"text": 3}', b'{"text": "\\ud800"}', b'{"text": NaN}', b'{"label": 1e999}'),
    *(b'{"text": "a", "text": "b"}', b'{"text": "a", "label": true}', b'{"text": "a", "label": [1]}', b"/etc/passwd"),
    *(b"../../x.png", b"x" * 200_000),
)


def _read(path: Path) -> None:
    """Read a file in every way that its ending allows; nothing but errors of opnp may come of it."""
    ways: list[Any] = [read_score_table]
    for transform in (PLAIN, LETTERS):
        for is_labelled in (True, False):
            ways.append(lambda p, t=transform, k=is_labelled: list(open_inputs(p, t, is_labelled=k).batches(7)))
            ways.append(lambda p, t=transform, k=is_labelled: open_inputs(p, t, is_labelled=k).source.digest())
    for way in ways:
        message = ""
        try:
            way(path)
        except OpnpError as error:
            message = str(error)
        assert len(message) < 2500


@pytest.mark.parametrize("trials", [150, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_texts_of_any_pieces_are_read_or_refused(tmp_path: Path, tried: Tried, ending: str, trials: int) -> None:
    tried("inputs", "lists, texts and score files put together from odd pieces", trials)
    generator = random.Random(zlib.crc32(ending.encode()))  # noqa: S311  # a choice, no secret
    for _ in range(trials):
        content = b"".join(generator.choices(_PIECES, k=generator.randrange(1, 30)))
        (tmp_path / f"some{ending}").write_bytes(content)
        with within(30):
            _read(tmp_path / f"some{ending}")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ending=st.sampled_from([".csv", ".jsonl", ".txt"]), content=st.binary(max_size=300))
@example(ending=".csv", content=b"score\n" + b"\r" * 9)
@example(ending=".jsonl", content=b"\xef\xbb\xbf")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, ending: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(content)
    _read(path)


_TABLES: dict[str, tuple[bytes, str]] = {
    "repeated column": (b"score,score\n1,2\n", "2 columns called `score`"),
    "repeated p-value": (b"score,p_value,p_value\n1,0.5,0.25\n", "2 columns called `p_value`"),
    "open quote": (b'score\n"1\n2\n', "unexpected end of data"),
    "latin-1": ("score,n\u00e4me\n1,x\n".encode("latin-1"), "cannot be read"),
    "utf-16": ("score\n1\n".encode("utf-16"), "cannot be read"),
    "null": (b"score\n1\0\n", "cannot be read|not a value"),
    "hexadecimal": (b"score\n0x10\n", "not a value"),
    "p-value of infinity": (b"score,p_value\n1,1e999\n", "lie above 0"),
    "long line": (b"score\n" + b"1" * 1_000_000 + b"\n", "field larger than field limit"),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", _TABLES)
def test_score_files_that_mislead_are_refused(
    tmp_path: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tried("inputs", "score files that mislead")
    content, message = _TABLES[name]
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    with pytest.raises((DataFileError, EmptyDataError), match=message):
        read_score_table(path)
    ran = run_opnp("monitor", path)
    assert is_told(ran), ran
    assert len(ran.err) < 1000


@pytest.mark.reliability
def test_infinite_scores_are_numbers_and_marks_of_order_are_none(tmp_path: Path, tried: Tried) -> None:
    tried("inputs", "score files that are unusual and right", 2)
    (tmp_path / "scores.csv").write_bytes(b'\xef\xbb\xbfscore,note\r\ninf,"a\r\nb"\r\n-1e999,\r\n')
    assert read_score_table(tmp_path / "scores.csv").scores.tolist() == [float("inf"), float("-inf")]
    (tmp_path / "scores.csv").write_bytes(b'"score"\n\n1_0\n 2 \n')
    assert torch.equal(read_score_table(tmp_path / "scores.csv").scores, torch.tensor([10.0, 2.0]).double())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with all that `LINES` read, and images beside."""
    monkeypatch.chdir(write_world(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    images, _ = class_images(4, seed=0)
    for row, name in enumerate(("a b.png", "\u00fc.png", "sub/deep.png", "plain.png")):
        save_image(tmp_path / "images" / name, images[row])
    save_image(tmp_path / "outside.png", images[0])
    return tmp_path


@pytest.mark.reliability
def test_lists_with_odd_paths_name_what_cannot_be_read(here: Path, tried: Tried) -> None:
    (here / "images" / "gone.png").symlink_to("nowhere")
    (here / "images" / "loop.png").symlink_to("loop.png")
    good = ["a b.png", "\u00fc.png", "./sub/../sub/deep.png", "plain.png", "plain.png", "../outside.png"]
    good.append(str(here / "outside.png"))
    bad = [
        "gone.png",
        "loop.png",
        "no.png",
        "sub",
        ".",
        "/",
        "nul\0l.png",
        "x" * 300 + ".png",
        "x/" * 3000,
        "/dev/null",
    ]
    bad += ["~/a.png", "$HOME/a.png", "http://localhost/a.png", "plain.png\\", "'plain.png'", "../" * 50 + "etc/passwd"]
    tried("inputs", "odd paths in lists of images", 2 * len(good + bad))
    for ending, text in {".txt": "{}\n", ".csv": '"{}",1\n'}.items():
        path = here / "images" / f"list{ending}"
        path.write_text("".join(text.format(name) for name in good + bad), encoding="utf-8")
        found = open_inputs(path, PLAIN)
        rows = sum(len(batch[0] if ending == ".csv" else batch) for batch in found.batches(3))
        assert rows == len(good)
        assert [name for name, _ in found.unreadable] == bad
        assert all(reason and "\n" not in reason for _, reason in found.unreadable)
        line = [path if word == "train.safetensors" else word for word in LINES["fit model"]]
        ran = run_opnp(*line)
        assert ran.code == 0, ran
        assert f"{len(bad)} of {len(good + bad)} inputs could not be read" in ran.err
        ran = run_opnp(*line, "--strict")
        assert is_told(ran)
        assert "gone.png cannot be read" in ran.err


@pytest.mark.parametrize("size", [100_000, pytest.param(4_000_000, marks=pytest.mark.long)])
def test_texts_and_lists_take_memory_by_their_size(tmp_path: Path, tried: Tried, size: int) -> None:
    """A line of megabytes, many empty lines, brackets without end: at most 40 times the file is held."""
    contents = {
        "a.jsonl": b'{"text": "' + b"x" * size + b'"}\n',
        "b.jsonl": b"[" * size,
        "c.jsonl": b"\n" * (size // 10) + b"{}",
        "d.csv": b"text\n" + b'"' + b"x\n" * (size // 10),
        "e.csv": b"path\n" + b"," * size,
        "f.txt": b"x" * size,
        "g.csv": b"text\n" + b"a\n" * 20,
    }
    tried("inputs", "files of text with lines of megabytes", len(contents))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            with within(60):
                _read(tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] < 40 * len(content) + 10_000_000, name
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("trials", [60, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_damaged_texts_are_read_or_refused(tmp_path: Path, tried: Tried, ending: str, trials: int) -> None:
    tried("inputs", "lists, texts and score files that are cut off or have bytes changed", trials)
    lines = {
        ".csv": 'text,label,score,p_value,is_ood\n"a, b",1,0.5,0.25,False\n' + "word,2,1.5,0.5,True\n" * 6,
        ".jsonl": '{"text": "a word", "label": 3}\n' * 6,
        ".txt": "a.png\nb/c.png\n" * 4,
    }
    for content in damaged(lines[ending].encode(), trials, seed=3, head=40):
        (tmp_path / f"some{ending}").write_bytes(content)
        _read(tmp_path / f"some{ending}")

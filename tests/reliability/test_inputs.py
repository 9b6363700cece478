"""Images, arrays, texts, lists, scores, weights and data sets, damaged or odd: read as they should be, or refused."""

import itertools
import pickle
import random
import struct
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from numpy.lib import format as numpy_format
from PIL import Image
from safetensors.torch import save, save_file

from opnp.adapters import model_from_name
from opnp.data import load_weights, open_inputs, read_weights
from opnp.data.images import decoded_image
from opnp.data.tables import read_score_table
from opnp.errors import DataFileError, EmptyDataError, OpnpError
from tests.reliability.inputs_world import LINES, Trap, damaged, is_told, run_opnp, within, write_world
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, class_images, tiny_model
from tests.unit.data.image_files import PLAIN, save_image
from tests.unit.data.text_world import LETTERS

FIT = ("fit", "--model", "tinynets:net", *OPTIONS, "--rho-w-min", "0.1", "--shaping", "none", "--out", "d.st")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with all that `LINES` read."""
    monkeypatch.chdir(write_world(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return tmp_path


FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tiff", "BMP": ".bmp", "GIF": ".gif", "PPM": ".ppm"}
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(5)


def pictures() -> Iterator[tuple[str, str, bytes]]:
    """Yield images of every mode in every format that has it."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray(np.asarray(colours)[:, :, 0].astype(np.uint16) * 200)
    modes = {mode: colours.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F")}
    for kind, (mode, image) in itertools.product(
        FORMATS, (modes | {"LA": modes["L"].convert("LA"), "I;16": deep}).items()
    ):
        made = BytesIO()
        try:
            image.save(made, kind)
        except (OSError, ValueError, KeyError):
            continue
        yield mode, kind, made.getvalue()


@pytest.mark.reliability
def test_images_of_every_mode_are_rgb_or_refused_for_their_depth(tmp_path: Path, tried: Tried) -> None:
    cases = list(pictures())
    tried("inputs", "formats and modes of images", len(cases))
    for mode, kind, content in cases:
        path = tmp_path / f"image{FORMATS[kind]}"
        path.write_bytes(content)
        if mode in ("I;16", "I", "F") and kind in ("PNG", "TIFF", "PPM"):
            with pytest.raises(DataFileError, match="more than 8 bits a channel"):
                decoded_image(path)
            continue
        image = decoded_image(path)
        assert (image.mode, image.size) == ("RGB", (20, 24))
        with Image.open(BytesIO(content)) as raw:
            assert np.array_equal(np.asarray(image), np.asarray(raw.convert("RGB"))), (mode, kind)


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=pytest.mark.long)])
def test_damaged_images_are_read_or_counted(tmp_path: Path, tried: Tried, trials: int) -> None:
    cases = [
        (kind, each)
        for _, kind, content in pictures()
        for each in (b"", *damaged(content, trials, seed=zlib.crc32(kind.encode()), head=64))
    ]
    tried("inputs", "images that are cut off or have bytes changed", len(cases))
    for kind, content in cases:
        path = tmp_path / f"image{FORMATS[kind]}"
        path.write_bytes(content)
        for given in (path, content):
            try:
                with within(120):
                    found = decoded_image(given).mode
            except DataFileError as error:
                found = str(error)
            assert 0 < len(found) < 500, (kind, found)
            assert "\n" not in found


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


HUGE = {
    "png": png(2**31 - 1, 2**31 - 1),
    "tall png": png(1, 2**31 - 1),
    "ppm": b"P6 1000000000 1000000000 255\n" + bytes(100),
    "ppm of digits": b"P6 " + b"9" * 100_000 + b" 9 255\n",
    "no pixels": b"P6 0 0 255\n" + bytes(100),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", HUGE)
def test_images_that_declare_a_huge_size_are_refused(name: str, tried: Tried) -> None:
    tried("inputs", "images that declare a huge size")
    with within(120), pytest.raises(DataFileError) as refused:
        decoded_image(HUGE[name])
    assert len(str(refused.value)) < 200


@pytest.mark.reliability
def test_odd_names_and_bad_files_in_a_folder_are_scored_or_counted(here: Path, tried: Tried) -> None:
    tried("inputs", "folders with odd names and bad files", 3)
    images, data = class_images(9, seed=0)[0], here / "data"
    names = ("a b", "\u00e9\U0001f600", "line\nbreak", "[red]", "\x1b[31m", "'; rm -rf", "-", "plain")
    for row, name in enumerate(names):
        save_image(data / f"{name}.png", images[row])
    (data / "empty.png").touch()
    (data / "text.jpg").write_text("no image", encoding="utf-8")
    (data / "gone.png").symlink_to("nowhere")
    (data / "round.png").symlink_to("round.png")
    (data / "folder.png").mkdir()  # which is no image, and is not counted
    for name, content in HUGE.items():
        (data / f"{name}.bmp").write_bytes(content)
    ran = run_opnp(*FIT, "--data", data)
    assert ran.code == 0, ran
    assert f"{4 + len(HUGE)} of {len(names) + 4 + len(HUGE)} inputs could not be read" in ran.err
    line = ("score", "--detector", "d.st", "--model", "tinynets:net", *OPTIONS, "--data", data)
    ran = run_opnp(*line, "--out", "scores.csv", "--json")
    assert ran.code == 0, ran
    assert f'"samples": {len(names)}' in ran.out
    assert is_told(run_opnp(*line, "--out", "strict.csv", "--strict"))
    assert not (here / "strict.csv").exists()


def npy(array: Any) -> bytes:
    content = BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(**arrays: Any) -> bytes:
    content = BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


ARRAYS = {
    ".npy": npy(PIXELS),
    ".npz": npz(images=PIXELS, labels=LABELS),
    ".safetensors": save({"images": torch.from_numpy(PIXELS), "labels": torch.from_numpy(LABELS)}),
}


@pytest.mark.parametrize("trials", [30, pytest.param(3000, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", ARRAYS)
def test_damaged_arrays_are_read_or_refused(tmp_path: Path, tried: Tried, ending: str, trials: int) -> None:
    tried("inputs", "files of image arrays that are cut off or have bytes changed", trials)
    path = tmp_path / f"some{ending}"
    for spoiled in damaged(ARRAYS[ending], trials, seed=1, head=600):
        path.write_bytes(spoiled)
        try:
            found = open_inputs(path, PLAIN)
            batches = list(found.batches(4))
        except OpnpError as error:
            assert str(path) in str(error)  # noqa: PT017  # it may be read as well
            continue
        inputs = torch.cat([batch[0] if found.labels is not None else batch for batch in batches])
        assert inputs.shape == (len(found) - len(found.unreadable), 3, 8, 8)


def header(shape: str, kind: str = "'|u1'", *, body: bytes = b"0" * 960) -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return numpy_format.magic(2, 0) + len(text).to_bytes(4, "little") + text + body


SHAPES = (
    *("(999999999999, 8, 8, 3)", f"({10**30}, 8, 8, 3)", "(-1, 8, 8, 3)", "(-4, -4, 8, 3)", "(2.0, 8, 8, 3)", "7"),
    *("('a', 8)", "(" * 3000 + ")" * 3000, "(1, (2, 3", "(__import__('os').system('touch marker'),)", "(9**9**9,)"),
    *("(True, 8, 8, 3)", "(0, 8, 8, 3)"),
)
ITEMS = (
    *("'|O'", "[('a', '|u1'), ('b', '|O')]", "'|S0'", "'zz'", "'|V9999999999'", "[('a', '|u1', (99999, 99999))]"),
    *("'<M8[as]'", "'>u2'"),
)


@pytest.mark.reliability
def test_headers_that_declare_anything_take_no_memory_and_run_nothing(here: Path, tried: Tried) -> None:
    cases = [header(shape) for shape in SHAPES]
    cases += [header("(5, 8, 8, 3)", kind, body=pickle.dumps(Trap(here / "marker"))) for kind in ITEMS]
    tried("inputs", "headers of arrays that declare what is not there", len(cases))
    path = here / "some.npy"
    for index, content in enumerate(cases):
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(OpnpError):
                open_inputs(path, PLAIN)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()
        if index % 4 == 0:
            assert is_told(run_opnp(*FIT, "--data", path)), content[:200]
    assert not (here / "marker").exists()


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt", ".bin", ".csv", ".parquet"])
def test_pickles_with_the_right_name_are_never_run(here: Path, tried: Tried, ending: str, step: int) -> None:
    marker = Trap(here / "marker")
    objects = np.array([marker, marker], dtype=object)
    contents = [pickle.dumps(marker), npy(objects), npz(images=objects), npz(images=PIXELS, labels=objects)]
    for stored in (marker, {"weight": marker}, {"state_dict": {"weight": torch.ones(2), "marker": marker}}):
        for is_zip in (True, False):
            made = BytesIO()
            torch.save(stored, made, _use_new_zipfile_serialization=is_zip)
            contents.append(made.getvalue())
    path = here / f"some{ending}"
    lines: list[tuple[object, ...]] = [
        (*FIT, "--data", path),
        (*FIT, "--data", here, "--weights", path),
        ("fit", "--features", path, "--head", path, "--out", "d"),
        ("inspect", path),
        ("monitor", path, "--detector", path),
    ]
    pairs = [pair for index, pair in enumerate(itertools.product(contents, lines)) if (index + index // 5) % step == 0]
    tried("inputs", "pickles under the names of data, weights, heads, detectors and scores", len(pairs))
    for content, line in pairs:
        path.write_bytes(content)
        assert is_told(run_opnp(*line)), line
    assert not (here / "marker").exists()


@pytest.mark.parametrize("trials", [30, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".old"])
def test_damaged_weights_load_whole_or_not_at_all(tmp_path: Path, tried: Tried, ending: str, trials: int) -> None:
    tried("inputs", "files of weights that are cut off or have bytes changed", trials)
    path, state = tmp_path / f"some{ending}", tiny_model().state_dict()
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=ending == ".pt")
    for spoiled in damaged(path.read_bytes(), trials, seed=zlib.crc32(ending.encode()), head=900):
        path.write_bytes(spoiled)
        target = tiny_model()
        try:
            load_weights(target, read_weights(path), path=path)
        except DataFileError as error:
            assert str(path) in str(error)  # noqa: PT017  # as above
            kept = target.state_dict()
            assert all(torch.equal(kept[name], value) for name, value in state.items())


PIECES = (
    *(b"path", b"text", b"label", b"labels", b"score", b"p_value", b"is_ood", b"a.png", b"0", b"1", b"-1", b"0.5"),
    *(b"nan", b"inf", b"1e999", b"1e-999", b"0x10", "\u0663".encode(), b"9" * 400, b"9" * 5000, b"true", b"False"),
    *(b",", b",", b",", b"\n", b"\n", b"\r", b"\r\n", b'"', b'""', b" ", b"\t", b";", b"\0", b"\xef\xbb\xbf", b"\xff"),
    *(b"\xff\xfe", b"\xc3", "\u00fc".encode(), "\u2028".encode(), b"\\", b"{", b"}", b"[" * 2000, b":", b"null"),
    *(b'{"text": "word", "label": 3}', b'{"text": 3}', b'{"text": "\\ud800"}', b'{"text": NaN}', b'{"label": 1e999}'),
    *(b'{"text": "a", "text": "b"}', b'{"text": "a", "label": true}', b'{"text": "a", "label": [1]}', b"/etc/passwd"),
    *(b"../../x.png", b"x" * 200_000),
)
SOUND = {
    ".csv": b'text,label,score,p_value,is_ood\n"a, b",1,0.5,0.25,False\n' + b"word,2,1.5,0.5,True\n" * 6,
    ".jsonl": b'{"text": "a word", "label": 3}\n' * 6,
    ".txt": b"a.png\nb/c.png\n" * 4,
}


def read(path: Path) -> None:
    """Read a file in every way that its ending allows; nothing but errors of opnp may come of it."""
    ways: list[Any] = [read_score_table]
    for transform, is_labelled in itertools.product((PLAIN, LETTERS), (True, False)):
        ways.append(lambda p, t=transform, k=is_labelled: list(open_inputs(p, t, is_labelled=k).batches(7)))
        ways.append(lambda p, t=transform, k=is_labelled: open_inputs(p, t, is_labelled=k).source.digest())
    for way in ways:
        try:
            with within(300):
                way(path)
        except OpnpError as error:
            assert len(str(error)) < 2500  # noqa: PT017  # as above


def put_together(ending: str, trials: int) -> Iterator[bytes]:
    generator = random.Random(zlib.crc32(ending.encode()))  # noqa: S311  # a choice, no secret
    return (b"".join(generator.choices(PIECES, k=generator.randrange(1, 30))) for _ in range(trials))


@pytest.mark.parametrize(
    ("what", "trials"),
    [
        ("put together from odd pieces", 150),
        ("that are cut off or have bytes changed", 60),
        pytest.param("put together from odd pieces", 10_000, marks=pytest.mark.long),
        pytest.param("that are cut off or have bytes changed", 2000, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("ending", SOUND)
def test_texts_of_any_content_are_read_or_refused(
    tmp_path: Path, tried: Tried, what: str, trials: int, ending: str
) -> None:
    tried("inputs", f"lists, texts and score files {what}", trials)
    is_odd = what.startswith("put")
    for content in put_together(ending, trials) if is_odd else damaged(SOUND[ending], trials, seed=3, head=40):
        (tmp_path / f"some{ending}").write_bytes(content)
        read(tmp_path / f"some{ending}")


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
    }
    tried("inputs", "files of text with lines of megabytes", len(contents))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            read(tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] < 40 * len(content) + 10_000_000, name
        finally:
            tracemalloc.stop()


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"score,score\n1,2\n", "2 columns called `score`"),
        (b'score\n"1\n2\n', "unexpected end of data"),
        ("score,n\u00e4me\n1,x\n".encode("latin-1"), "cannot be read"),
        ("score\n1\n".encode("utf-16"), "cannot be read"),
        (b"score\n1\0\n", "cannot be read|not a value"),
        (b"score\n0x10\n", "not a value"),
        (b"score,p_value\n1,1e999\n", "lie above 0"),
        (b"score\n" + b"1" * 1_000_000 + b"\n", "field larger than field limit"),
    ],
    ids=["two columns", "open quote", "latin-1", "utf-16", "null", "hexadecimal", "infinite p-value", "long line"],
)
def test_score_files_that_mislead_are_refused(tmp_path: Path, tried: Tried, content: bytes, message: str) -> None:
    tried("inputs", "score files that mislead")
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    with pytest.raises((DataFileError, EmptyDataError), match=message):
        read_score_table(path)
    ran = run_opnp("monitor", path)
    assert is_told(ran), ran
    assert len(ran.err) < 1000


@pytest.mark.reliability
def test_lists_with_odd_paths_name_what_cannot_be_read(here: Path, tried: Tried) -> None:
    image = class_images(4, seed=0)[0][0]
    for name in ("images/a b.png", "images/\u00fc.png", "images/sub/deep.png", "images/plain.png", "outside.png"):
        save_image(here / name, image)
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of texts that was saved to disk."""
    folder = tmp_path_factory.mktemp("saved") / "texts"
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = {"text": ["some", "words", "here"] * 4, "label": [0, 1, 1] * 4}
    Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("trials", [25, pytest.param(900, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_damaged_data_sets_are_read_or_refused(saved: Path, tried: Tried, name: str, trials: int) -> None:
    tried("inputs", "saved data sets of which a file is cut off or has bytes changed", trials)
    whole = (saved / name).read_bytes()
    try:
        for content in damaged(whole, trials, seed=5, head=900):
            (saved / name).write_bytes(content)
            try:
                with within(300), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of datasets, on features that it does not know
                    list(open_inputs(saved, LETTERS).batches(5))
            except OpnpError as error:
                assert "Traceback" not in str(error)  # noqa: PT017  # as above
    finally:
        (saved / name).write_bytes(whole)
    assert len(open_inputs(saved, LETTERS)) == 12


@pytest.mark.reliability
@pytest.mark.parametrize("splits", ["[]", "3", '{"splits": 3}', '{"splits": [3]}', '{"splits": []}', "[" * 3000, "\0"])
def test_indices_of_splits_that_are_none_are_told(tmp_path: Path, tried: Tried, splits: str) -> None:
    tried("inputs", "indices of splits of data sets that are odd")
    (tmp_path / "dataset_dict.json").write_text(splits, encoding="utf-8")
    with pytest.raises(DataFileError, match=r"holds the splits|is no readable data set"):
        open_inputs(tmp_path, LETTERS)


MODELS = """
import sys
from torch import nn


class Raising(nn.Module):
    def __init__(self):
        raise SystemExit(0)


class Meta(type):
    def __getattr__(cls, name):
        raise ValueError("no\\nname")


class Odd(metaclass=Meta):
    pass


def wants(argument):
    return nn.Identity()


def recursive():
    return recursive()


def hungry():
    raise MemoryError


def nothing():
    return None
"""


@pytest.mark.reliability
def test_names_of_models_of_odd_kind_are_refused(tmp_path: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "oddnets": MODELS.encode(),
        "unfinished": b"def net(:\n",
        "binary": b"\0\xff\xfe",
        "leaving": b"raise SystemExit(0)",
    }
    monkeypatch.chdir(tmp_path)
    for module, content in modules.items():
        (tmp_path / f"{module}.py").write_bytes(content)
    odd = ["Raising", "Odd.name", "wants", "recursive", "hungry", "nothing", "no", "__name__", "nn", "sys.exit"]
    odd += ["wants.__globals__", "..", ".wants", "wants.", "wants()", "wants:x", " "]
    names = [f"oddnets:{name}" for name in odd] + ["unfinished:net", "binary:net", "leaving:net", "no.such:net"]
    names += [".oddnets:wants", "..:x", "a/b:c", "oddnets.py:wants", "oddnets", ":", "", "os:", ":os", "\0:x", "x:\0"]
    names += ["os:getcwd", "builtins:list", "\udcff:x"]
    tried("inputs", "names of models that name none", len(names))
    try:
        for name in names:
            with pytest.raises(OpnpError, match="`model`"), within(120):
                model_from_name(name)
    finally:
        for module in modules:
            sys.modules.pop(module, None)

"""Images of every kind, damaged or made to harm: each is read as it should be, or counted with the reason."""

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opnp.data.images import decoded_image
from opnp.errors import DataFileError
from tests.reliability.inputs_world import damaged, is_told, memory_bounded, run_opnp, within
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, class_images, write_module
from tests.unit.data.image_files import save_image

_ENDINGS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "TIFF": ".tiff",
    "BMP": ".bmp",
    "GIF": ".gif",
    "PPM": ".ppm",
}
_PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F")


def _written(mode: str, kind: str) -> bytes | None:
    """Return an image of a mode in a format, or None where the format has no such mode."""
    image = Image.fromarray(_PIXELS, "RGBA") if mode == "RGBA" else Image.fromarray(_PIXELS[:, :, :3].copy())
    if mode == "I;16":
        image = Image.fromarray(_PIXELS[:, :, 0].astype(np.uint16) * 200)
    elif mode == "LA":
        image = image.convert("L").convert("LA")
    elif mode not in ("RGB", "RGBA"):
        image = image.convert(mode)
    made = BytesIO()
    try:
        image.save(made, kind)
    except (OSError, ValueError, KeyError):
        return None
    return made.getvalue()


def _all_written() -> Iterator[tuple[str, str, bytes]]:
    for kind in _ENDINGS:
        for mode in _MODES:
            content = _written(mode, kind)
            if content is not None:
                yield mode, kind, content


def is_deep(mode: str, kind: str) -> bool:
    """Return whether an image of this mode has more than 8 bits a channel in a file of this format."""
    return mode in ("I;16", "I", "F") and kind in ("PNG", "TIFF", "PPM")


@pytest.mark.reliability
def test_images_of_every_mode_are_rgb_or_refused_for_their_depth(tmp_path: Path, tried: Tried) -> None:
    cases = list(_all_written())
    tried("inputs", "formats and modes of images", len(cases))
    for mode, kind, content in cases:
        path = tmp_path / f"image{_ENDINGS[kind]}"
        path.write_bytes(content)
        if is_deep(mode, kind):
            with pytest.raises(DataFileError, match="more than 8 bits a channel"):
                decoded_image(path)
            continue
        image = decoded_image(path)
        assert (image.mode, image.size) == ("RGB", (20, 24))
        with Image.open(BytesIO(content)) as raw:
            assert np.array_equal(np.asarray(image), np.asarray(raw.convert("RGB"))), (mode, kind)


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=pytest.mark.long)])
def test_damaged_images_are_read_or_counted(tmp_path: Path, tried: Tried, trials: int) -> None:
    cases = [(mode, kind, each) for mode, kind, content in _all_written() for each in _spoiled(content, kind, trials)]
    tried("inputs", "images that are cut off or have bytes changed", len(cases))
    for mode, kind, content in cases:
        path = tmp_path / f"image{_ENDINGS[kind]}"
        path.write_bytes(content)
        for given in (path, content):
            try:
                with within(30):
                    found = decoded_image(given).mode
            except DataFileError as error:
                found = str(error)
            assert 0 < len(found) < 500, (mode, kind, found)
            assert "\n" not in found


def _spoiled(content: bytes, kind: str, trials: int) -> Iterator[bytes]:
    yield b""
    yield from damaged(content, trials, seed=zlib.crc32(kind.encode()), head=64)


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + head + bytes(100)


def _gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


def _ppm(width: int, height: int) -> bytes:
    return f"P6 {width} {height} 255\n".encode() + bytes(100)


_HUGE = {
    "png": _png(2**31 - 1, 2**31 - 1),
    "tall png": _png(1, 2**31 - 1),
    "bmp": _bmp(2**31 - 1, 2**31 - 1),
    "upside-down bmp": _bmp(2**31 - 1, -(2**31)),
    "gif": _gif(65535, 65535),
    "ppm": _ppm(10**9, 10**9),
    "ppm of digits": b"P6 " + b"9" * 100_000 + b" 9 255\n",
    "no pixels": _ppm(0, 0),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", _HUGE)
def test_images_that_declare_a_huge_size_take_no_memory(name: str, tried: Tried) -> None:
    tried("inputs", "images that declare a huge size")
    with memory_bounded(2**29), within(30), pytest.raises(DataFileError) as refused:
        decoded_image(_HUGE[name])
    assert len(str(refused.value)) < 200


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a good image in odd places beside bad ones, and a module of models beside it."""
    monkeypatch.chdir(write_module(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    images, _ = class_images(9, seed=0)
    for row, name in enumerate(
        ("a b", "\u00e9\U0001f600", "line\nbreak", "[red]", "\x1b[31m", "'; rm -rf", "\udcff", "-")
    ):
        save_image(tmp_path / "data" / f"{name}.png", images[row])
    (tmp_path / "data" / "empty.png").touch()
    (tmp_path / "data" / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "data" / "gone.png").symlink_to("nowhere")
    (tmp_path / "data" / "round.png").symlink_to("round.png")
    (tmp_path / "data" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.png")
    for name, content in _HUGE.items():
        (tmp_path / "data" / f"{name}.bmp").write_bytes(content)
    return tmp_path


@pytest.mark.reliability
def test_odd_names_and_bad_files_in_a_folder_are_scored_or_counted(tree: Path, tried: Tried) -> None:
    tried("inputs", "folders with odd names and bad files", 3)
    fit = (
        "fit",
        "--model",
        "tinynets:net",
        *OPTIONS,
        "--rho-w-min",
        "0.1",
        "--shaping",
        "none",
        "--out",
        tree / "d.st",
    )
    ran = run_opnp(*fit, "--data", tree / "data")
    assert ran.code == 0, ran
    assert f"{3 + len(_HUGE) + 1} of {8 + 3 + len(_HUGE) + 1} inputs could not be read" in ran.err
    line = ("score", "--detector", tree / "d.st", "--model", "tinynets:net", *OPTIONS, "--data", tree / "data")
    ran = run_opnp(*line, "--out", tree / "scores.csv", "--json")
    assert ran.code == 0, ran
    assert '"samples": 8' in ran.out
    assert is_told(run_opnp(*line, "--out", tree / "strict.csv", "--strict"))
    assert not (tree / "strict.csv").exists()

"""Files of arrays and weights that are damaged or made to harm: one message, no code run, memory bounded by size."""

import itertools
import pickle
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as numpy_format
from safetensors.torch import save, save_file

from opnp.data import load_weights, open_inputs, read_weights
from opnp.errors import DataFileError, OpnpError
from tests.reliability.inputs_world import Ran, damaged, is_told, memory_bounded, run_opnp
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, tiny_model, write_module
from tests.unit.data.image_files import PLAIN

_PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
_LABELS = np.arange(5)


class _Marker:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _npy(array: Any, **options: Any) -> bytes:
    content = BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def _npz(**arrays: Any) -> bytes:
    content = BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _header(shape: str, descr: str = "'|u1'", *, order: str = "False", body: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return numpy_format.magic(2, 0) + len(text).to_bytes(4, "little") + text + body


def _tensors(**tensors: Any) -> bytes:
    return save({name: torch.from_numpy(value) for name, value in tensors.items()})


def _fitted(folder: Path, data: Path) -> Ran:
    """Return what ``opnp fit`` makes of these inputs; data are opened first, the model is tiny."""
    arguments = ("fit", "--model", "tinynets:net", *OPTIONS, "--rho-w-min", "0.1", "--shaping", "none", "--data", data)
    return run_opnp(*arguments, "--out", folder / "d.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a module of models."""
    monkeypatch.chdir(write_module(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return tmp_path


@pytest.mark.parametrize("trials", [30, pytest.param(3000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".npy", _npy(_PIXELS)),
        (".npz", _npz(images=_PIXELS, labels=_LABELS)),
        (".safetensors", _tensors(images=_PIXELS, labels=_LABELS)),
    ],
    ids=["npy", "npz", "safetensors"],
)
def test_damaged_arrays_are_read_or_refused(
    tmp_path: Path, tried: Tried, ending: str, content: bytes, trials: int
) -> None:
    tried("inputs", "files of image arrays that are cut off or have bytes changed", trials)
    path = tmp_path / f"some{ending}"
    for spoiled in damaged(content, trials, seed=1, head=600):
        path.write_bytes(spoiled)
        try:
            found = open_inputs(path, PLAIN)
            batches = list(found.batches(4))
        except OpnpError as error:
            message = str(error)
            batches = []
        if not batches:
            assert str(path) in message
            continue
        inputs = torch.cat([batch[0] if found.labels is not None else batch for batch in batches])
        assert inputs.shape == (len(found) - len(found.unreadable), 3, 8, 8)


_SHAPES = {
    "huge": "(999999999999, 8, 8, 3)",
    "beyond 64 bits": f"({10**30}, 8, 8, 3)",
    "negative": "(-1, 8, 8, 3)",
    "negative twice": "(-4, -4, 8, 3)",
    "floats": "(2.0, 8, 8, 3)",
    "text": "('a', 8)",
    "no tuple": "7",
    "brackets": "(" * 3000 + ")" * 3000,
    "open bracket": "(1, (2, 3",
    "code": "(__import__('os').system('touch marker'),)",
    "power": "(9**9**9,)",
    "truth": "(True, 8, 8, 3)",
    "none": "(0, 8, 8, 3)",
}
_KINDS = {
    "objects": "'|O'",
    "fields": "[('a', '|u1'), ('b', '|O')]",
    "bytes of no length": "'|S0'",
    "unknown": "'zz'",
    "long": "'|V9999999999'",
    "many": "[('a', '|u1', (99999, 99999))]",
    "dates": "'<M8[as]'",
    "wide": "'>u2'",
}


@pytest.mark.reliability
@pytest.mark.parametrize("packed", [".npy", ".npz"])
def test_headers_that_declare_anything_take_no_memory_and_run_nothing(here: Path, tried: Tried, packed: str) -> None:
    cases = [_header(shape, body=b"0" * 960) for shape in _SHAPES.values()]
    cases += [_header("(5, 8, 8, 3)", kind, body=pickle.dumps(_Marker(here / "marker"))) for kind in _KINDS.values()]
    tried("inputs", "headers of arrays that declare what is not there", len(cases))
    path = here / f"some{packed}"
    for index, content in enumerate(cases):
        path.write_bytes(content if packed == ".npy" else _zipped({"images.npy": content}))
        _refused_in_little_memory(path)
        if index % 4 == 0:
            ran = _fitted(here, path)
            assert is_told(ran), (content[:200], ran)
    assert not (here / "marker").exists()


def _zipped(contents: dict[str, bytes]) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return made.getvalue()


def _refused_in_little_memory(path: Path) -> None:
    with memory_bounded(2**29), pytest.raises(OpnpError):
        open_inputs(path, PLAIN)


@pytest.mark.reliability
def test_archives_that_lie_about_their_size_take_no_memory(here: Path, tried: Tried) -> None:
    cases = [
        _lying(_header("(90000000, 8, 8, 3)", body=bytes(100)), 17_280_000_000 % 2**32),
        _zipped({"images.npy": _header("(90000000, 8, 8, 3)", body=bytes(100))}),
    ]
    tried("inputs", "zip archives of arrays that grow or lie about their size", len(cases))
    for content in cases:
        (here / "some.npz").write_bytes(content)
        _refused_in_little_memory(here / "some.npz")
        assert is_told(_fitted(here, here / "some.npz"))


def _lying(content: bytes, size: int) -> bytes:
    """Return an archive with one array, whose directory says that it has so many bytes."""
    made = bytearray(_zipped({"images.npy": content}))
    true, said = len(content).to_bytes(4, "little"), size.to_bytes(4, "little")
    return bytes(made.replace(true, said))


@pytest.mark.reliability
def test_layouts_that_numpy_writes_are_the_same_images(tmp_path: Path, tried: Tried) -> None:
    tried("inputs", "layouts of arrays that hold the same images", 5)
    (tmp_path / "plain.npy").write_bytes(_npy(_PIXELS))
    (tmp_path / "fortran.npy").write_bytes(_npy(np.asfortranarray(_PIXELS)))
    (tmp_path / "packed.npz").write_bytes(_npz(images=np.asfortranarray(_PIXELS), labels=_LABELS.astype(">i8")))
    np.savez(tmp_path / "loose.npz", images=_PIXELS, labels=_LABELS.astype("<i2"))
    (tmp_path / "some.safetensors").write_bytes(_tensors(images=_PIXELS, labels=_LABELS))
    for path in sorted(tmp_path.iterdir()):
        found = open_inputs(path, PLAIN)
        assert found.source.labels in (None, tuple(range(5)))
        assert all(np.array_equal(np.asarray(found.source.sample(row)), _PIXELS[row]) for row in range(5))


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt", ".bin", ".csv", ".parquet"])
def test_pickles_with_the_right_name_are_never_run(here: Path, tried: Tried, ending: str, step: int) -> None:
    marker = _Marker(here / "marker")
    objects = np.array([marker, marker], dtype=object)
    contents = [pickle.dumps(marker), _npy(objects), _npz(images=objects), _npz(images=_PIXELS, labels=objects)]
    for stored in (marker, {"weight": marker}, {"state_dict": {"weight": torch.ones(2), "marker": marker}}):
        for is_zip in (True, False):
            made = BytesIO()
            torch.save(stored, made, _use_new_zipfile_serialization=is_zip)
            contents.append(made.getvalue())
    path = here / f"some{ending}"
    lines: list[tuple[object, ...]] = [
        ("fit", "--model", "tinynets:net", *OPTIONS, "--data", path, "--out", "d"),
        ("fit", "--model", "tinynets:net", *OPTIONS, "--data", here, "--weights", path, "--out", "d"),
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


def _told_or_loaded(path: Path) -> str:
    """Return the message of weights that were refused, after a look at the model, else the path."""
    target = tiny_model()
    try:
        load_weights(target, read_weights(path), path=path)
    except DataFileError as error:
        message = str(error)
    else:
        return str(path)
    kept = target.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in tiny_model().state_dict().items())
    return message


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
        assert str(path) in _told_or_loaded(path)


@pytest.mark.reliability
def test_weights_of_other_shapes_and_kinds_change_nothing(here: Path, tried: Tried) -> None:
    cases = 0
    state = tiny_model().state_dict()
    for name, value in state.items():
        shapes = [value[None], value.flatten()[:0], torch.zeros(*value.shape, 2), torch.tensor(1.0), value.double() * 2]
        for other in (*shapes, value.to(torch.complex64), value.float().to_sparse() if value.ndim else value[None]):
            torch.save(state | {name: other}, here / "some.pt")
            told = _told_or_loaded(here / "some.pt")
            assert name in told or "tensors" in told or told == str(here / "some.pt")
            cases += 1
    tried("inputs", "weights of other shapes and kinds", cases)

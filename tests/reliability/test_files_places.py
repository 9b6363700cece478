"""Where files lie: links, pipes, devices, folders in their place, strange and long names, endless claims."""

import json
import os
import stat
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from opnp.data import read_head, write_features, write_head, write_score_table
from opnp.detector import OPNP, Ratios
from opnp.errors import MissingFileError, OpnpError
from opnp.files import existing_file, remove_parts, require_writable, write_atomically
from tests.child_process import started
from tests.in_process import Opnp
from tests.reliability.files_tasks import READERS, read_with_little_memory
from tests.reliability.files_world import KINDS, Kind, kind
from tests.tried import Tried

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices as POSIX has them"),
]
EACH = pytest.mark.parametrize("each", KINDS, ids=lambda each: each.name)
NAMES = {
    "blanks": "a file .x",
    "unicode": "größe 模型 🦊",
    "line feed": "one\ntwo",
    "dash": "-o",
    "dashes": "--detector",
    "quotes": "'\"`$(touch x)`",
    "brackets": "[bold]:smile:",
    "percent": "%s{0}%",
    "dot": ".hidden",
    "long": "n" * 240,
}


def folder_instead(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Put /dev/zero there: for root, who could replace the real one, another device of the same kind."""
    if os.geteuid() != 0:
        path.symlink_to("/dev/zero")
        return
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except OSError:
        pytest.skip("this root may make no devices, and must not write to the real ones")


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent)


INSTEAD = [folder_instead, pipe, endless, dangling, loop, link_to_folder]


@pytest.mark.parametrize("put", INSTEAD, ids=lambda put: put.__name__)
@EACH
def test_what_is_no_file_is_refused_at_once(
    own: Path, each: Kind, put: Callable[[Path], None], tried: Tried, opnp: Opnp
) -> None:
    """A pipe is read until somebody writes, and /dev/zero until the memory is full: neither may be opened."""
    tried("files", f"places of {each.name} that hold a folder, a pipe, a device or a broken link")
    path = own / each.file
    whole = each.read(path) if each.name.startswith("checkpoints") else None
    path.unlink()
    put(path)
    try:
        found = each.read(path)
    except OpnpError:
        is_refused = True
    else:
        is_refused = found == "none" or found.count("None") > 0  # a folder of results without this part of them
        if whole is not None:
            is_refused = found == whole and put in (dangling, loop)  # no file is there: the run begins anew
    assert is_refused
    if each.arguments is not None and "report" not in each.arguments(own) and put is not dangling:
        outcome = opnp(*each.arguments(own))
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("opnp: ")


@EACH
def test_a_link_to_a_file_is_the_file(own: Path, each: Kind, tried: Tried) -> None:
    tried("files", "links to files, read")
    path = own / each.file
    expected = each.read(path)
    path.rename(own / "elsewhere")
    path.symlink_to(own / "elsewhere")
    assert each.outcome(path, expected) == "same"


def test_a_loaded_detector_outlives_its_file(own: Path, tried: Tried) -> None:
    """Another file is copied over it, or it is cut: a server that has loaded it goes on as it was."""
    tried("files", "loaded files that were changed in place, or cut", 4)
    features = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
    for damage in (b"", b"\xff" * 20_000):
        path, head = own / "detector.safetensors", own / "features" / "head.safetensors"
        saved = path.read_bytes(), head.read_bytes()
        detector, linear = OPNP.load(path), read_head(head)
        before = detector.score_features(features), detector.head_digest, linear.weight.clone()
        path.write_bytes(damage)
        head.write_bytes(damage)
        assert torch.equal(detector.score_features(features), before[0])
        assert detector.with_ratios(Ratios(w_min=0.5)).score_features(features).isfinite().all()
        assert detector.head_digest == before[1]
        assert torch.equal(linear.weight, before[2])
        path.write_bytes(saved[0])
        head.write_bytes(saved[1])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_any_kind(made: Path, tmp_path: Path, name: str, tried: Tried, opnp: Opnp) -> None:
    """Written, read, inspected, scored and watched under this name, as a file and as a folder."""
    tried("files", "names with blanks, signs, line feeds, dashes and dots", 6)
    folder = tmp_path / name[:200]
    folder.mkdir()
    stem, features = name[:230], folder / f"{name[:230]}.features.safetensors"[-255:]
    detector, scored = folder / f"{stem}.safetensors", folder / f"{stem}.csv"
    parquet = folder / f"{stem}.parquet"
    loaded = OPNP.load(made / "detector.safetensors")
    loaded.save(detector)
    write_features(features, torch.rand(30, 16))
    assert OPNP.load(detector).head_digest == loaded.head_digest
    for out in (scored, parquet):
        assert opnp("score", "--detector", detector, "--features", features, "--out", out).code == 0
        assert opnp("monitor", out, "--detector", detector).code == 0
    assert opnp("inspect", "--", detector).code == 0
    assert opnp("inspect", "--json", "--", detector).code == 0
    for wrong in (folder, folder / f"{stem}.missing", features):
        for command in (
            ["inspect", "--", wrong],
            ["score", "--detector", wrong, "--features", features, "--out", scored],
        ):
            refused = opnp(*command)
            assert refused.code == 2, refused
            assert refused.err.startswith("opnp: ")
    assert sorted(folder.iterdir()) == sorted([detector, scored, parquet, features])


def test_brackets_in_a_path_are_no_markup(made: Path, tmp_path: Path, tried: Tried, opnp: Opnp) -> None:
    tried("files", "paths that could be taken for markup")
    (tmp_path / "a[").mkdir()
    out, features = tmp_path / "a[" / "red].csv", made / "features" / "test.safetensors"
    found = opnp("score", "--detector", made / "detector.safetensors", "--features", features, "--out", out)
    assert found.code == 0, found
    assert "[/red].csv" in found.out.replace("\n", "").replace(" ", "")


def test_names_that_no_file_can_have(tmp_path: Path, tried: Tried, opnp: Opnp) -> None:
    names = ["n" * 256, "n" * 5000, "d/" * 3000 + "x", "a\0b", ""]
    tried("files", "names that no file can have", len(names))
    for name in names:
        for read in (OPNP.load, partial(existing_file, content="x")):
            with pytest.raises(MissingFileError):
                read(Path(name) if name else Path())
        if "\0" not in name:
            assert opnp("inspect", "--", name).code == 2
        with pytest.raises((OSError, ValueError)):
            write_atomically(tmp_path / name, b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_link_to_write_to_stays_a_link(tmp_path: Path, is_relative: bool, is_there: bool, tried: Tried) -> None:
    tried("files", "links, written to")
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file", tmp_path / "link"
    if is_there:
        target.write_bytes(b"old")
    link.symlink_to("far/file" if is_relative else target)
    (tmp_path / "second").symlink_to("link")
    write_atomically(tmp_path / "second", b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "file", "link", "second"]
    (tmp_path / "far" / ".file.x.part").touch()
    remove_parts(link)
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file"]


def written(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return what writing changes of all that a folder holds; that a link was read counts as its last access."""
    facts = {each: os.lstat(each) for each in folder.rglob("*")}
    return {each: (of.st_mode, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for each, of in facts.items()}


@pytest.mark.parametrize("put", [*INSTEAD[:3], loop, link_to_folder], ids=lambda put: put.__name__)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, b"x"),
        require_writable,
        lambda path: write_head(path, torch.eye(2)),
        lambda path: write_score_table(path, {"score": [1.0]}),
    ],
)
def test_what_is_no_file_is_not_written_over(
    tmp_path: Path, put: Callable[[Path], None], write: Callable[[Path], None], tried: Tried
) -> None:
    """With the rights for it, /dev/null itself would become a file."""
    tried("files", "places to write to that hold a folder, a pipe, a device or a link to itself")
    path = tmp_path / "file.csv"
    put(path)
    before = written(tmp_path)
    with pytest.raises(MissingFileError, match=r"name a file to write"):
        write(path)
    assert written(tmp_path) == before


@pytest.mark.parametrize("length", [200, 201, 240, 255])
def test_long_names_are_written_and_leave_no_part(tmp_path: Path, length: int, tried: Tried) -> None:
    tried("files", "names of up to 255 bytes, written")
    path = tmp_path / ("ä" * (length // 2) + "x" * (length % 2))
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    part = Path(str(partial_file(path)))
    part.touch()
    remove_parts(path)
    assert list(tmp_path.iterdir()) == [path]


def partial_file(path: Path) -> Path:
    """Return what a writer that is killed leaves beside a file."""
    from opnp.files import _part_prefix

    return path.with_name(f"{_part_prefix(path)}x.part")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_file_fills_no_memory(tmp_path: Path, tried: Tried) -> None:
    """Processes read files of 300 bytes that declare a terabyte, or rows without end, with 200 MB to spare."""
    tried("files", "files of 300 bytes that declare a terabyte, read with 200 MB", 2 * len(READERS))
    path = tmp_path / "odin.safetensors"
    for number, end in enumerate((2**40, 0)):
        names = ("features", "weight", "test", "head.weight")
        shape = [2**20, 2**18] if end else [2**40, 0]
        header = json.dumps({each: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]} for each in names})
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        log = tmp_path / f"log{number}"
        process = started(read_with_little_memory, path, 200 << 20, log=log)
        process.join(60)
        told = log.read_text(encoding="utf-8")
        assert process.exitcode == 0, told
        assert all(f"refused {name}" in told for name in READERS), told


@pytest.mark.parametrize("name", ["score files in Parquet", "scores of benchmarks"])
def test_a_small_table_of_endless_rows_is_refused(own: Path, name: str, tried: Tried) -> None:
    """Equal values take no room in Parquet: nine million rows are some hundred kilobytes."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    tried("files", "tables of some hundred kilobytes with nine million rows")
    each = kind(name)
    path, rows = own / each.file, 9_000_000
    model = parquet.read_table(path)["model"][0].as_py() if name == "scores of benchmarks" else "x"

    def equal(text: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), [text])

    columns = {"model": equal(model), "method": equal("OPNP()"), "set": equal("test"), "score": np.zeros(rows)}
    parquet.write_table(pa.table(columns), path)
    assert path.stat().st_size < rows / 50
    assert each.outcome(path, "") == "refused"

"""Where files lie and what stops their writing: links, pipes, strange names, full disks, kills; no half is left."""

import ctypes
import errno
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from opnp.bench.odin import OdinAbout, OdinScores, write_odin
from opnp.bench.origin import FeatureSource
from opnp.bench.records import ScoreBlock, write_scores
from opnp.data import FeatureShardWriter, read_head, write_features, write_head, write_score_table
from opnp.detector import OPNP, Ratios
from opnp.errors import MissingFileError, OpnpError
from opnp.files import existing_file, remove_parts, require_writable, write_atomically
from opnp.monitor import DriftMonitor
from opnp.report import write_figures, write_report
from tests.child_process import started
from tests.in_process import Opnp
from tests.reliability.files_world import KINDS, Kind, kind
from tests.tried import Tried

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(sys.platform != "linux", reason="limits, links, devices and users as Linux has them"),
]
EACH = pytest.mark.parametrize("each", KINDS, ids=lambda each: each.name)
Write = Callable[[Path, Path], object]


def shards(_: Path, out: Path) -> None:
    with FeatureShardWriter(out, rows_per_shard=16, is_replacing=True) as writer:
        writer.write(torch.ones(40, 8))


def block(_: Path, out: Path) -> None:
    write_scores(out / "s.parquet", [ScoreBlock("m", "test", "OPNP()", torch.arange(50), torch.arange(50.0).double())])


WRITERS: dict[str, Write] = {
    "detector files": lambda made, out: OPNP.load(made / "detector.safetensors").save(out / "d.safetensors"),
    "monitor states": lambda made, out: DriftMonitor.load(made / "monitor.safetensors").save(out / "m.safetensors"),
    "files of features": lambda _, out: write_features(out / "f.safetensors", torch.ones(40, 8)),
    "files of heads": lambda _, out: write_head(out / "h.safetensors", torch.ones(4, 8)),
    "folders of shards": shards,
    "sources of features": lambda made, out: FeatureSource.read(made).write(out),
    "scores of ODIN": lambda _, out: write_odin(
        out, OdinScores(OdinAbout(1.0, 0.1, (), "x", "", {"t": ""}), {"t": torch.ones(9)})
    ),
    "score files in CSV": lambda _, out: write_score_table(out / "s.csv", {"score": [1.5] * 100}),
    "score files in Parquet": lambda _, out: write_score_table(out / "s.parquet", {"score": [1.5] * 100}),
    "scores of benchmarks": block,
}
WRITER = pytest.mark.parametrize("name", WRITERS)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, which a full disk does as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@WRITER
def test_a_write_that_stops_anywhere_changes_nothing(made: Path, tmp_path: Path, name: str, tried: Tried) -> None:
    """Where the disk is full after so many bytes, the error says so, and the folder is as it was."""
    WRITERS[name](made, tmp_path)
    size = max(map(len, contents(tmp_path).values()))
    limits = sorted({0, 1, 7, 8, 100, size // 2, size - 1})
    tried("files", f"{name} written to a disk that is full after some bytes", len(limits))
    for path in tmp_path.iterdir():
        path.write_bytes(b"the former file")
    before = contents(tmp_path)
    for limit in limits:
        with small_files(limit), pytest.raises(OSError) as caught:  # the number says which
            WRITERS[name](made, tmp_path)
        assert caught.value.errno == errno.EFBIG
        left = contents(tmp_path)
        assert left == before if name != "folders of shards" else not left  # those that are replaced go first
    with small_files(size):
        WRITERS[name](made, tmp_path)
    assert max(map(len, contents(tmp_path).values())) == size


@pytest.mark.parametrize("limit", [0, 1000])
def test_commands_that_meet_a_full_disk(made: Path, tmp_path: Path, limit: int, tried: Tried, opnp: Opnp) -> None:
    features, head = made / "features" / "train.safetensors", made / "features" / "head.safetensors"
    fit = ["fit", "--features", features, "--head", head, "--rho-w-min", "0.1", "--batch-size", "16"]
    score = ["score", "--features", features, "--detector", made / "detector.safetensors", "--out"]
    watch = ["monitor", made / "scored.csv", "--detector", made / "detector.safetensors", "--state"]
    commands = [
        [*fit, "--out", tmp_path / "d.safetensors"],
        [*fit, "--out", tmp_path / "d.safetensors", "--checkpoint", tmp_path / "c", "--checkpoint-every", "1"],
        [*score, tmp_path / "s.csv"],
        [*score, tmp_path / "s.parquet"],
        [*watch, tmp_path / "m.safetensors"],
        ["report", made / "fit", "--out", tmp_path / "page.html"],
    ]
    tried("files", "commands on a full disk", len(commands))
    for command in commands:
        with small_files(limit):
            found = opnp(*command)
        assert found.code == 2, (command, found)
        assert found.err.startswith("opnp: ")
        assert "File too large" in found.err
        assert all(path.suffix == ".lock" for path in tmp_path.iterdir()), command


@pytest.mark.parametrize("write", [write_report, pytest.param(write_figures, marks=pytest.mark.long)])
def test_pages_and_figures_on_a_full_disk(made: Path, tmp_path: Path, write: Write, tried: Tried) -> None:
    tried("files", "pages and figures written to a full disk")
    out = tmp_path / "page.html" if write is write_report else tmp_path
    write(made / "demo", out)
    before = contents(tmp_path)
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        write(made / "demo", out)
    assert contents(tmp_path) == before


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Let the file system see root as nobody, for this thread; an ordinary user stays who it is."""
    if os.geteuid() != 0:
        yield
        return
    system = ctypes.CDLL(None)
    system.setfsuid(65534)
    try:
        yield
    finally:
        system.setfsuid(0)


def test_folders_and_files_without_the_right(made: Path, tried: Tried) -> None:
    """Everybody may look into the folder, and nobody but its owner write to it."""
    tried("files", "folders that may not be written to", len(WRITERS))
    tried("files", "files that may not be read")
    with TemporaryDirectory() as name:
        outer = Path(name)
        kept, inner = Path(shutil.copytree(made, outer / "kept")), outer / "inner"
        inner.mkdir()
        for path in (outer, kept, *kept.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for write in WRITERS.values():
            write(kept, inner)  # all is imported now
        inner.chmod(0o555)
        before = contents(inner)
        with ordinary_user():
            for write in WRITERS.values():
                with pytest.raises(PermissionError):
                    write(kept, inner)
            with pytest.raises(PermissionError):
                require_writable(inner / "new")
        assert contents(inner) == before
        inner.chmod(0o755)
        (kept / "detector.safetensors").chmod(0)
        with ordinary_user(), pytest.raises(OpnpError, match="detector"):
            OPNP.load(kept / "detector.safetensors")


def save_without_end(source: Path, path: Path) -> None:
    """Write two detectors by turns, to be killed; a task for `started`."""
    one = OPNP.load(source)
    other = one.with_ratios(one.settings.ratios)
    while True:
        one.save(path)
        other.save(path)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_writer_leaves_a_whole_file(made: Path, tmp_path: Path, kills: int, tried: Tried) -> None:
    tried("files", "writers of detectors killed by SIGKILL", kills)
    path = tmp_path / "out" / "detector.safetensors"
    path.parent.mkdir()
    for number in range(kills):
        process = started(save_without_end, made / "detector.safetensors", path, log=tmp_path / "log")
        while not path.exists():
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.003 * (number % 13))
        process.kill()
        process.join()
        OPNP.load(path)
        remove_parts(path)
        assert list(path.parent.iterdir()) == [path]
        path.unlink()


def endless(path: Path) -> None:
    """Put /dev/zero there: for root, who could replace the real one, another device of the same kind."""
    if os.geteuid() != 0:
        path.symlink_to("/dev/zero")
        return
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except OSError:
        pytest.skip("this root may make no devices, and must not write to the real ones")


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "endless": endless,
    "loop": loop,
    "link to folder": lambda path: path.symlink_to(path.parent),
    "dangling": lambda path: path.symlink_to(path.with_name("nowhere")),
}


def removed(path: Path) -> None:
    """Remove whatever one of `INSTEAD` has put at a path, and beside it."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
    path.with_name("other").unlink(missing_ok=True)


@EACH
def test_what_is_no_file_is_refused_at_once(own: Path, each: Kind, tried: Tried, opnp: Opnp) -> None:
    """A pipe is read until somebody writes, and /dev/zero until the memory is full: neither may be opened."""
    tried("files", f"places of {each.name} that hold a folder, a pipe, a device or a broken link", len(INSTEAD))
    path = own / each.file
    whole = each.read(path) if each.name.startswith("checkpoints") else None
    path.unlink()
    for name, put in INSTEAD.items():
        put(path)
        try:
            found = each.read(path)
        except OpnpError:
            is_refused = True
        else:
            is_refused = found == "none" or found.count("None") > 0  # a folder of results without this part of them
            if whole is not None:
                is_refused = found == whole and name in ("dangling", "loop")  # no file is there: the run begins anew
        assert is_refused, name
        if each.arguments is not None and "report" not in each.arguments(own) and name != "dangling":
            outcome = opnp(*each.arguments(own))
            assert outcome.code == 2, (name, outcome)
            assert outcome.err.startswith("opnp: ")
        removed(path)


@EACH
def test_a_link_to_a_file_is_the_file(own: Path, each: Kind, tried: Tried) -> None:
    tried("files", "links to files, read")
    path = own / each.file
    expected = each.read(path)
    path.rename(own / "elsewhere")
    path.symlink_to(own / "elsewhere")
    assert each.outcome(path, expected) == "same"


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20_000], ids=["cut", "changed"])
def test_a_loaded_detector_outlives_its_file(own: Path, damage: bytes, tried: Tried) -> None:
    """Another file is copied over it, or it is cut: a server that has loaded it goes on as it was."""
    tried("files", "loaded files that were changed in place, or cut", 2)
    features = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
    path, head = own / "detector.safetensors", own / "features" / "head.safetensors"
    detector, linear = OPNP.load(path), read_head(head)
    scores, weight = detector.score_features(features), linear.weight.clone()
    path.write_bytes(damage)
    head.write_bytes(damage)
    assert torch.equal(detector.score_features(features), scores)
    assert detector.with_ratios(Ratios(w_min=0.5)).score_features(features).isfinite().all()
    assert torch.equal(linear.weight, weight)


NAMES = {
    "unicode": "größe 模型 🦊",
    "line feed": "one\ntwo",
    "dashes": "--detector",
    "quotes": "'\"`$(touch x)`",
    "brackets": "[bold]:smile:[/red]",
    "percent": "%s{0}%",
    "dot": ".hidden",
    "long": "n" * 230,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_any_kind(made: Path, tmp_path: Path, name: str, tried: Tried, opnp: Opnp) -> None:
    """Written, read, inspected, scored and watched under this name, as a file and as a folder."""
    tried("files", "names with blanks, signs, line feeds, dashes and dots", 6)
    folder = tmp_path / name.replace("/", "")[:200]
    folder.mkdir()
    stem, features = folder / name.replace("/", ""), folder / "x.safetensors"
    detector, *tables = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".csv", ".parquet"))
    OPNP.load(made / "detector.safetensors").save(detector)
    write_features(features, torch.rand(30, 16))
    for out in tables:
        scored = opnp("score", "--detector", detector, "--features", features, "--out", out)
        assert scored.code == 0
        assert out.name in scored.out.replace("\n", "") or name != NAMES["brackets"]  # they are no markup
        assert opnp("monitor", out, "--detector", detector).code == 0
    assert opnp("inspect", "--", detector).code == opnp("inspect", "--json", "--", detector).code == 0
    for wrong in (folder, stem.with_name(stem.name + ".missing"), features):
        for command in (
            ["inspect", "--", wrong],
            ["score", "--detector", wrong, "--features", features, "--out", tables[0]],
        ):
            refused = opnp(*command)
            assert refused.code == 2, refused
            assert refused.err.startswith("opnp: ")
    assert sorted(folder.iterdir()) == sorted([detector, *tables, features])


def test_names_that_no_file_can_have(tmp_path: Path, tried: Tried, opnp: Opnp) -> None:
    names = ["n" * 256, "d/" * 3000 + "x", "a\0b", ""]
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


def facts(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return what writing changes of all that a folder holds; that a link was read counts as its last access."""
    found = {each: os.lstat(each) for each in folder.rglob("*")}
    return {each: (of.st_mode, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for each, of in found.items()}


@pytest.mark.parametrize("put", [put for put in INSTEAD if put != "dangling"])
def test_what_is_no_file_is_not_written_over(tmp_path: Path, put: str, tried: Tried) -> None:
    """With the rights for it, /dev/null itself would become a file."""
    writes: list[Callable[[Path], object]] = [
        lambda path: write_atomically(path, b"x"),
        require_writable,
        lambda path: write_head(path, torch.eye(2)),
        lambda path: write_score_table(path, {"score": [1.0]}),
    ]
    tried("files", "places to write to that hold a folder, a pipe, a device or a link to itself", len(writes))
    path = tmp_path / "file.csv"
    INSTEAD[put](path)
    before = facts(tmp_path)
    for write in writes:
        with pytest.raises(MissingFileError, match=r"name a file to write"):
            write(path)
    assert facts(tmp_path) == before


@pytest.mark.parametrize("length", [200, 201, 240, 255])
def test_long_names_are_written_and_leave_no_part(tmp_path: Path, length: int, tried: Tried) -> None:
    tried("files", "names of up to 255 bytes, written")
    path = tmp_path / ("ä" * (length // 2) + "x" * (length % 2))
    for content in (b"one", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


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

"""Disks that are full, folders that take nothing, processes that are killed: the former file stays, no half is left."""

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from opnp.bench.odin import OdinAbout, OdinScores, write_odin
from opnp.bench.origin import FeatureSource
from opnp.bench.records import ScoreBlock, write_scores
from opnp.data import FeatureShardWriter, write_features, write_head, write_score_table
from opnp.detector import OPNP
from opnp.errors import OpnpError
from opnp.files import remove_parts, require_writable
from opnp.monitor import DriftMonitor
from opnp.report import write_figures, write_report
from tests.child_process import started
from tests.in_process import Opnp
from tests.reliability.files_tasks import save_without_end
from tests.tried import Tried

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits, mounts and users as Linux has them")
pytestmark = [pytest.mark.reliability, LINUX]
Write = Callable[[Path, Path], object]


def shards(made: Path, out: Path) -> None:
    with FeatureShardWriter(out, rows_per_shard=16, is_replacing=True) as writer:
        writer.write(torch.ones(40, 8))


def block(_: Path, out: Path) -> None:
    write_scores(out / "s.parquet", [ScoreBlock("m", "test", "OPNP()", torch.arange(50), torch.arange(50.0).double())])


WRITERS: dict[str, Write] = {
    "detector files": lambda made, out: OPNP.load(made / "detector.safetensors").save(out / "d.safetensors"),
    "monitor states": lambda made, out: DriftMonitor.load(made / "monitor.safetensors").save(out / "m.safetensors"),
    "files of features": lambda made, out: write_features(out / "f.safetensors", torch.ones(40, 8)),
    "files of heads": lambda made, out: write_head(out / "h.safetensors", torch.ones(4, 8)),
    "folders of shards": shards,
    "sources of features": lambda made, out: FeatureSource.read(made).write(out),
    "scores of ODIN": lambda made, out: write_odin(
        out, OdinScores(OdinAbout(1.0, 0.1, (), "x", "", {"t": ""}), {"t": torch.ones(9)})
    ),
    "score files in CSV": lambda made, out: write_score_table(out / "s.csv", {"score": [1.5] * 100}),
    "score files in Parquet": lambda made, out: write_score_table(out / "s.parquet", {"score": [1.5] * 100}),
    "scores of benchmarks": block,
}
EACH = pytest.mark.parametrize("name", WRITERS)


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


def longest(folder: Path) -> int:
    return max(map(len, contents(folder).values()))


@EACH
def test_a_write_that_stops_anywhere_changes_nothing(made: Path, tmp_path: Path, name: str, tried: Tried) -> None:
    """Where the disk is full after so many bytes, the error says so, and the folder is as it was."""
    WRITERS[name](made, tmp_path)
    size = longest(tmp_path)
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
    assert longest(tmp_path) == size


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
def test_pages_and_figures_on_a_full_disk(
    made: Path, tmp_path: Path, write: Callable[[Path, Path], object], tried: Tried
) -> None:
    tried("files", "pages and figures written to a full disk")
    out = tmp_path / "page.html" if write is write_report else tmp_path
    write(made / "demo", out)
    before = contents(tmp_path)
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        write(made / "demo", out)
    assert contents(tmp_path) == before


@pytest.fixture
def megabyte(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may mount nothing; the limit on files does the same in other tests of this module")
    try:
        yield folder
    finally:
        subprocess.run([str(shutil.which("umount")), str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_disk_of_one_megabyte(made: Path, megabyte: Path, tried: Tried) -> None:
    tried("files", "files written to a full disk of one megabyte", len(WRITERS))
    for number, (name, write) in enumerate(WRITERS.items()):
        folder, filler = megabyte / str(number), megabyte / "filler"
        folder.mkdir()
        if name != "folders of shards":  # those that are replaced go first, and make room
            write(made, folder)
        before = contents(folder)
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        with pytest.raises(OSError, match="No space left"):
            write(made, folder)
        assert contents(folder) == before
        filler.unlink()
        write(made, folder)


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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that everybody may look into, and nobody but its owner write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@EACH
def test_a_folder_that_takes_nothing(made: Path, open_folder: Path, name: str, tried: Tried) -> None:
    tried("files", "folders that may not be written to")
    inner = open_folder / "inner"
    inner.mkdir()
    WRITERS[name](made, inner)  # all is imported now
    inner.chmod(0o555)
    before = contents(inner)
    kept = open_folder / "kept"
    shutil.copytree(made, kept)
    for path in (kept, *kept.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with ordinary_user():
        with pytest.raises(PermissionError):
            WRITERS[name](kept, inner)
        with pytest.raises(PermissionError):
            require_writable(inner / "new")
    assert contents(inner) == before
    inner.chmod(0o755)


def test_a_file_that_may_not_be_read(made: Path, open_folder: Path, tried: Tried) -> None:
    tried("files", "files that may not be read")
    path = open_folder / "detector.safetensors"
    shutil.copyfile(made / "detector.safetensors", path)
    OPNP.load(path)
    path.chmod(0)
    with ordinary_user(), pytest.raises(OpnpError, match="detector"):
        OPNP.load(path)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_writer_leaves_a_whole_file(made: Path, tmp_path: Path, kills: int, tried: Tried) -> None:
    tried("files", "writers of detectors killed by SIGKILL", kills)
    path, folder = tmp_path / "out" / "detector.safetensors", tmp_path / "out"
    folder.mkdir()
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
        assert list(folder.iterdir()) == [path]
        path.unlink()

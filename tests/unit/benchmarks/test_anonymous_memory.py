"""Anonymous memory is that of the process, not that of mapped files; and it is left out where it cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import anonymous_memory as module
from benchmarks.anonymous_memory import anonymous_memory

SCRIPT = """
import mmap, sys, time
from benchmarks.anonymous_memory import anonymous_memory

def mapped():
    with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        return sum(pages[::4096])

def own():
    kept = bytearray(b"1") * 40_000_000
    time.sleep(0.1)

for step in (mapped, own):
    print(anonymous_memory(step)[1].growth)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc")
def test_pages_of_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1" * 40_000_000)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "file")]
    mapped, own = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert mapped < 5_000_000
    assert 40_000_000 <= own < 50_000_000


def test_where_there_is_no_figure_it_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_STATUS", tmp_path / "missing")
    assert anonymous_memory(lambda: 3) == (3, None)
    (tmp_path / "status").write_text("Name: x\n", encoding="ascii")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
    assert anonymous_memory(lambda: 3) == (3, None)


def test_an_error_of_the_step_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        anonymous_memory(lambda: 1 / 0)

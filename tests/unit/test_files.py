"""Files are found or named as missing, and written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from opnp.errors import MissingFileError
from opnp.files import existing_file, remove_parts, require_writable, write_atomically


def test_a_file_is_written_and_replaced_and_a_look_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    require_writable(path)
    assert not list(tmp_path.iterdir())
    for content in (b"one", b"two"):
        write_atomically(str(path), content)
        require_writable(str(path))
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"one")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, owner: object, function: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(owner, function, fail)
    for name in ("file", "fresh"):
        with pytest.raises(type(error)):
            write_atomically(tmp_path / name, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_and_name_are_flushed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content first, then the rename, then the folder that holds the name."""
    steps: list[str] = []
    flush, rename = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        steps.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().suffix or 'folder'}")
        flush(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "file", b"one")
    assert steps == ["flush .part", "rename", "flush folder"]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refused(path: str | Path, *arguments: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "no folders")
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refused)
    write_atomically(tmp_path / "file", b"one")
    assert (tmp_path / "file").read_bytes() == b"one"


def test_parts_of_a_file_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".file.ab1.part", ".file.part", "file", ".other.ab1.part", "file.part", ".file.ab1"):
        (tmp_path / name).touch()
    remove_parts(tmp_path / "file")
    remove_parts(tmp_path / "missing" / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.ab1", ".other.ab1.part", "file", "file.part"]


@pytest.mark.parametrize("name", ["d.onnx", "d.safetensors"])
def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "part")

    (tmp_path / name).mkdir()
    for check in (require_writable, lambda path: write_atomically(path, b"one")):
        with pytest.raises(MissingFileError, match=rf"{name} is a folder: name a file to write, in it or elsewhere\.$"):
            check(tmp_path / name)
        with pytest.raises(MissingFileError, match="missing is no folder: create it before writing file there"):
            check(tmp_path / "missing" / "file")
    assert [path.name for path in tmp_path.rglob("*")] == [name]
    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(OSError, match=r"Read-only.*file'$"):
        require_writable(tmp_path / "file")


def test_existing_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert existing_file(str(tmp_path / "file"), content="features") == tmp_path / "file"
    with pytest.raises(MissingFileError, match=r"other does not exist: expected a file with features"):
        existing_file(tmp_path / "other", content="features")
    with pytest.raises(MissingFileError, match="is a folder: expected a file with features"):
        existing_file(tmp_path, content="features")

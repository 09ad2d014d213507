"""Files that are replaced while others read them."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from storage_manager.loop import status_file
from storage_manager.loop.status_file import lies_in, read_file, replace_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "status"
    directory.mkdir()
    return directory / "file"


def alone(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


def test_what_was_written_is_read_and_nothing_else_is_left(path: Path) -> None:
    for data in (b"one", b"", b"two" * 1000):
        replace_file(str(path), data)
        assert read_file(str(path), 5000) == data
        assert alone(path)


def test_everybody_may_read_it_whatever_the_umask_says(path: Path) -> None:
    before = os.umask(0o077)
    try:
        replace_file(str(path), b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_sees_one_whole_version_at_every_moment(path: Path) -> None:
    versions = [bytes([letter]) * 100_000 for letter in b"abc"]
    replace_file(str(path), versions[0])
    done = threading.Event()
    writers = [
        threading.Thread(target=lambda: [replace_file(str(path), versions[n % 3]) for n in range(300)])
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers) or not done.is_set():
        if not any(writer.is_alive() for writer in writers):
            done.set()
        data = read_file(str(path), 1 << 20)
        assert data in versions
        seen.add(data[:1])
    assert len(seen) > 1
    assert alone(path)


def test_a_symlink_is_replaced_and_what_it_leads_to_stays(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target)
    replace_file(str(path), b"new")
    assert target.read_text() == "precious"
    assert not path.is_symlink() and path.read_bytes() == b"new"


def test_a_symlink_in_place_of_the_draft_is_not_followed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda length: b"\0" * length)
    target = tmp_path / "target"
    target.write_text("precious")
    (path.parent / ".file.00000000.tmp").symlink_to(target)
    with pytest.raises(FileExistsError):
        replace_file(str(path), b"new")
    assert target.read_text() == "precious"
    assert not path.exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
def test_what_is_no_regular_file_is_left_alone(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as one:
            os.chdir(path.parent)  # the name of a socket may not be long
            one.bind(path.name)
    before = path.lstat()
    with pytest.raises(OSError, match="not a regular file"):
        replace_file(str(path), b"new")
    assert path.lstat().st_ino == before.st_ino and path.lstat().st_mode == before.st_mode
    assert alone(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_content_and_no_draft(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace_file(str(path), b"old")
    real = os.write
    calls: list[int] = []

    def write(fd: int, data: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:3])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError) as caught:
        replace_file(str(path), b"new content")
    assert caught.value.errno == number
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert alone(path)


def test_a_missing_directory_is_not_made(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(str(path.parent / "absent" / "file"), b"x")
    assert os.listdir(path.parent) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable_keeps_the_old_content(path: Path) -> None:
    path.write_bytes(b"old")
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            replace_file(str(path), b"new")
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == b"old"
    assert alone(path)


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        replace_file(str(path), b"x")
        read_file(str(path), 10)
        with pytest.raises(ValueError):
            read_file(str(path), 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_follows_no_symlink_and_waits_for_no_fifo(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match="symbolic link"):
        read_file(str(path), 10)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        read_file(str(path), 10)
    with pytest.raises(ValueError, match="not a regular file"):
        read_file(str(path.parent), 10)
    with pytest.raises(FileNotFoundError):
        read_file(str(path) + "x", 10)


def test_a_file_that_is_too_large_is_not_read(path: Path) -> None:
    path.write_bytes(b"x" * 11)
    assert read_file(str(path), 11) == b"x" * 11
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_file(str(path), 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_where_everybody_may_write_the_owner_counts(path: Path) -> None:
    path.write_bytes(b"x")
    os.chown(path, 12345, 12345)
    assert read_file(str(path), 10) == b"x"
    path.parent.chmod(0o1777)
    with pytest.raises(ValueError, match="belongs to user 12345"):
        read_file(str(path), 10)
    os.chown(path, 0, 0)
    assert read_file(str(path), 10) == b"x"


def test_where_a_file_lies_is_seen_through_links_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    assert lies_in(str(store / "file"), str(store))  # neither is there yet
    store.mkdir()
    (store / "below").mkdir()
    (tmp_path / "link").symlink_to(store)
    assert lies_in(str(tmp_path / "link" / "metadata.json"), str(store))
    assert lies_in(str(store / "below" / ".." / "file"), str(tmp_path / "link"))
    monkeypatch.chdir(store)
    assert lies_in("file", str(store))
    assert not lies_in(str(store / "below" / "file"), str(store))
    assert not lies_in(str(tmp_path / "file"), str(store))


def test_a_current_directory_that_is_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "getcwd", gone)
    assert not lies_in("file", str(tmp_path))
    assert status_file.lies_in(str(tmp_path / "file"), str(tmp_path))

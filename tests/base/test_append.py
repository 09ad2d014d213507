"""Lines are added whole, within a bound, and to nothing that belongs to somebody else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage_manager.base.append import SHARE, append_line, older

MOST = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def test_lines_follow_each_other_and_only_the_owner_reads_them(path: Path) -> None:
    append_line(str(path), b"one\n", MOST)
    append_line(str(path), b"two\n", MOST)
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_short_does_not_take_the_next_one_with_it(path: Path) -> None:
    path.write_bytes(b"one\ntw")
    append_line(str(path), b"three\n", MOST)
    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_a_full_file_is_renamed_and_the_one_before_it_goes(path: Path) -> None:
    for line in (b"aaaa\n", b"bbbb\n", b"cccc\n", b"dddd\n", b"eeee\n"):
        append_line(str(path), line, 10)
    assert Path(older(str(path))).read_bytes() == b"cccc\ndddd\n"
    assert path.read_bytes() == b"eeee\n"


def test_a_line_larger_than_the_bound_is_written_all_the_same(path: Path) -> None:
    append_line(str(path), b"a" * 100 + b"\n", 10)
    assert path.stat().st_size == 101


def test_on_a_small_file_system_it_leaves_room_for_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_blocks=SHARE, f_frsize=10))
    append_line(str(path), b"aaaa\n", MOST)
    append_line(str(path), b"bbbbbb\n", MOST)
    assert path.read_bytes() == b"bbbbbb\n"


def test_a_file_that_another_process_has_just_renamed_is_not_renamed_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old\n")
    real = os.fstatvfs

    def rotated_meanwhile(fd: int) -> os.statvfs_result:
        monkeypatch.setattr(os, "fstatvfs", real)
        path.rename(older(str(path)))
        path.write_bytes(b"new\n")
        return real(fd)

    monkeypatch.setattr(os, "fstatvfs", rotated_meanwhile)
    append_line(str(path), b"mine\n", 5)
    assert Path(older(str(path))).read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\nmine\n"


def test_a_disk_that_takes_a_part_of_a_line_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:2]))
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(str(path), b"one\n", MOST)
    assert caught.value.errno == errno.ENOSPC


def test_it_does_not_write_through_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine\n")
    path.symlink_to(victim)
    with pytest.raises(OSError) as caught:
        append_line(str(path), b"one\n", MOST)
    assert caught.value.errno == errno.ELOOP
    assert victim.read_bytes() == b"mine\n"


def test_it_does_not_write_to_a_file_with_another_name(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine\n")
    os.link(victim, path)
    with pytest.raises(OSError, match="hard link"):
        append_line(str(path), b"one\n", MOST)
    assert victim.read_bytes() == b"mine\n"


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_regular_file_is_left_alone(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(OSError):
        append_line("/dev/null" if kind == "device" else str(path), b"one\n", MOST)


@needs_root
def test_where_everybody_may_create_files_a_file_of_somebody_else_is_left_alone(path: Path) -> None:
    path.write_bytes(b"")
    os.chown(path, 65534, 65534)
    path.parent.chmod(0o777)  # without the sticky bit, for which the kernel refuses by itself
    with pytest.raises(OSError, match="belongs to user 65534"):
        append_line(str(path), b"one\n", MOST)
    assert path.read_bytes() == b""


@needs_root
def test_what_root_makes_belongs_to_the_owner_of_the_directory(path: Path) -> None:
    os.chown(path.parent, 65534, 65534)
    append_line(str(path), b"one\n", MOST)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@needs_root
def test_root_goes_on_with_the_file_of_a_service(path: Path) -> None:
    path.write_bytes(b"one\n")
    os.chown(path, 65534, 65534)
    append_line(str(path), b"two\n", MOST)
    assert path.read_bytes() == b"one\ntwo\n"


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        append_line(str(path), b"aaaa\n", 10)
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(OSError):
        append_line(str(path), b"aaaa\n", 10)
    assert len(os.listdir("/proc/self/fd")) == before

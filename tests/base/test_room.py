"""Whether there is room beside a file that somebody else rewrites."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage_manager.base import room
from storage_manager.base.room import SLACK_BYTES, Room, free, has_quota, needed_bytes

BLOCK = 4096


def volume(free_bytes: int, reserved_bytes: int = 0, blocks: int = 1000) -> SimpleNamespace:
    available = free_bytes // BLOCK
    return SimpleNamespace(
        f_blocks=blocks, f_frsize=BLOCK, f_bavail=available, f_bfree=available + reserved_bytes // BLOCK
    )


def test_what_an_ordinary_user_can_write_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda fd: volume(8 * BLOCK, reserved_bytes=100 * BLOCK))
    assert free(0, 1, 1, has_quota=False) == (8 * BLOCK, False)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_a_file_system_that_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    def fstatvfs(fd: int) -> Any:
        if code is None:
            return volume(0, blocks=0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    assert free(0, 1, 1, has_quota=False) is None


def test_a_file_system_that_fails_is_no_file_system_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fstatvfs(fd: int) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    with pytest.raises(OSError, match="Input/output"):
        free(0, 1, 1, has_quota=False)


@pytest.mark.parametrize(
    ("quota", "left"),
    [
        ((100, 0, 40 << 10), 60 << 10),
        ((100, 0, 400 << 10), 0),
        ((0, 0, 40 << 10), None),
        ((100, 50, 45 << 10), 5 << 10),
        ((100, 50, 60 << 10), 0),
    ],
)
def test_the_smaller_of_a_quota_and_the_disk_counts(
    monkeypatch: pytest.MonkeyPatch, quota: tuple[int, ...], left: int | None
) -> None:
    asked = []

    def syscall(number: int, fd: int, command: int, owner: int, buffer: Any) -> int:
        asked.append((number, command, owner))
        if owner != 1000:
            return -1
        struct.pack_into("=8QI", buffer, 0, *quota, 0, 0, 0, 0, 0, 0)
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(syscall=syscall))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: volume(1 << 30))
    assert free(0, 1000, 2000, has_quota=True) == ((1 << 30, False) if left is None else (left, True))
    assert asked == [(443, 0x80000700, 1000), (443, 0x80000701, 2000)]


def test_nobody_is_asked_for_quotas_where_there_are_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not has_quota(os.fstat(fd).st_dev)
        # And where the kernel knows of none, asking all the same gives none.
        found = free(fd, 1000, 1000, has_quota=True)
        assert found is not None and not found.is_quota
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw,usrquota", True), ("rw,grpquota", True), ("rw,usrjquota=aquota.user,jqfmt=vfsv0", True),
        ("rw,noquota", False), ("rw,prjquota", False), ("rw", False),
    ],
)  # fmt: skip
def test_the_mount_tells_of_quotas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, expected: bool
) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = f"1 1 0:0 / / rw - tmpfs none rw,usrquota\n2 1 {number} / /x rw - ext4 d {options}\n"
    monkeypatch.setattr(builtins, "open", lambda *_: io.BytesIO(lines.encode()))
    assert has_quota(device) == expected


def test_the_bound_is_what_is_written_and_twice_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").write_bytes(bytes(100_000))
    enough = needed_bytes(room.LOOK_LASTS_BYTES, 100_000)
    assert enough == room.LOOK_LASTS_BYTES + 200_000 + SLACK_BYTES
    fd = os.open(tmp_path / "ours", os.O_RDWR | os.O_CREAT)
    try:
        for free_bytes, expected in ((enough + BLOCK, True), (enough - BLOCK, False)):
            monkeypatch.setattr(os, "fstatvfs", lambda _, size=free_bytes: volume(size))
            assert Room(str(tmp_path / "theirs")).has(fd, 500) == expected
        # Emptied, it is as large as it was: what it gave up is free only for a moment.
        there = Room(str(tmp_path / "theirs"))
        assert not there.has(fd, 500)
        os.truncate(tmp_path / "theirs", 0)
        monkeypatch.setattr(os, "fstatvfs", lambda _: volume(enough - BLOCK + 100_000))
        assert not there.has(fd, 500)
        # Who has never seen it otherwise spares a large one.
        monkeypatch.setattr(os, "fstatvfs", lambda _: volume(room.LARGEST_GUESS_BYTES))
        assert not Room(str(tmp_path / "theirs")).has(fd, 500)
        assert Room(str(tmp_path / "missing")).has(fd, 500)
    finally:
        os.close(fd)


def test_one_look_counts_for_a_second_and_some_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(os, "fstatvfs", lambda fd: looks.append(fd) or volume(1 << 30))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    (tmp_path / "theirs").write_bytes(b"{}")
    fd = os.open(tmp_path / "ours", os.O_RDWR | os.O_CREAT)
    try:
        there = Room(str(tmp_path / "theirs"))
        for _ in range(room.LOOK_LASTS_BYTES // 512):
            assert there.has(fd, 512)
        assert len(looks) == 1
        assert there.has(fd, 512) and len(looks) == 2
        now[0] += room.LOOK_LASTS_SECS
        assert there.has(fd, 512) and len(looks) == 3
        now[0] -= 50
        assert there.has(fd, 512) and len(looks) == 4
        assert there.has(fd, 10 * room.LOOK_LASTS_BYTES) and len(looks) == 5
    finally:
        os.close(fd)


def test_a_file_on_another_file_system_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").write_bytes(bytes(1000))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: volume(0))
    reader, writer = os.pipe()
    try:
        assert Room(str(tmp_path / "theirs")).has(writer, 500)
    finally:
        os.close(reader)
        os.close(writer)

"""Lines at the end of a file that others may read, write and rotate at the same time."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Optional

from storage_manager.base.room import Room

_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# Of a small file system, such as a tmpfs that has the heartbeat as well, each of the two files takes one part in so
# many.
SHARE = 8


def older(path: str) -> str:
    """What the file is renamed to when it is full."""
    return f"{path}.1"


def append_line(path: str, line: bytes, most_bytes: int, room: Optional[Room] = None) -> None:
    """Add a line, which has its own end, in one write, if there is `room` for it. A torn line before it is ended first.

    A file that would grow above `most_bytes`, or above its share of the file system, is renamed to `older()`. Its owner
    alone can read it; what root makes belongs to the owner of the directory, so that a service can go on with it. Not
    promised: that the line outlives a power cut (no fsync). Raises OSError, also for what must not be written to: a
    symbolic link, what is not a regular file or has another name, and, in a directory where everybody may create
    files, a file that neither this user nor root owns.
    """
    fd = _open(path)
    try:
        status, file_system = os.fstat(fd), os.fstatvfs(fd)
        share_bytes = file_system.f_blocks * file_system.f_frsize // SHARE
        if 0 < status.st_size > min(most_bytes, share_bytes or most_bytes) - len(line):
            if os.path.samestat(status, os.lstat(path)):  # else another process has just done it
                os.replace(path, older(path))
            newer = _open(path)
            os.close(fd)
            fd = newer
            status = os.fstat(fd)
        if status.st_size > 0 and os.pread(fd, 1, status.st_size - 1) != b"\n":
            line = b"\n" + line
        if room is not None and not room.has(fd, len(line)):
            raise OSError(errno.ENOSPC, "the service needs what is left of the disk")
        if os.write(fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _open(path: str) -> int:
    """Raises OSError."""
    fd = os.open(path, _OPEN, 0o600)
    try:
        status, directory = os.fstat(fd), os.stat(os.path.dirname(path) or ".")
        is_public = bool(directory.st_mode & stat.S_IWOTH)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if status.st_nlink > 1:
            raise OSError(errno.EMLINK, "it has another name, a hard link")
        if is_public and status.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EACCES, f"it belongs to user {status.st_uid}")
        if status.st_size == 0 and not is_public and os.geteuid() == 0 != directory.st_uid:
            with suppress(OSError):  # not every root may
                os.fchown(fd, directory.st_uid, directory.st_gid)
    except BaseException:
        os.close(fd)
        raise
    return fd

"""Room on a file system for a file that somebody else rewrites in place.

He empties the file and then writes it anew. Between the two, the bytes that it had are free for everybody. Whoever
takes them makes his write fail, and the file stays torn. So nothing of ours is written beside it unless enough stays
free.

The bound, for a file of S bytes: what we write, and after that still 2 S. One S, because the file may be empty at the
moment of the look, and what it gave up is counted as free. One more for what its owner adds from one look to the next.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import time
from typing import NamedTuple, Optional

TIMES = 2

# A new name or a longer file takes blocks for the file system's own notes, too.
SLACK_BYTES = 64 * 1024

# One look is believed for so long, and for so many bytes: a log of thousands of lines need not ask for each.
LOOK_LASTS_SECS = 1.0
LOOK_LASTS_BYTES = SLACK_BYTES // 4

# A file that is empty is being written, and nobody knows how large it will be.
LARGEST_GUESS_BYTES = 32 << 20

_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP)
_HAS_QUOTA = re.compile(rb"\b(usr|grp)j?quota\b")
_QUOTACTL_FD, _GET_QUOTA = 443, 0x800007  # a number that all but one architecture share, from Linux 5.14 on
_QUOTA = struct.Struct("=8QI")


class Free(NamedTuple):
    """What somebody can still write."""

    size_bytes: int
    is_quota: bool
    """Whether a quota, not the file system, is what bounds it."""


def needed_bytes(more_bytes: int, spared_bytes: int) -> int:
    """How much has to be free before `more_bytes` are written beside a file of `spared_bytes` of somebody else's."""
    return more_bytes + TIMES * spared_bytes + SLACK_BYTES


def free(fd: int, user: int, group: int, has_quota: bool) -> Optional[Free]:
    """What an ordinary user can write on the file system of `fd`, and, if it `has_quota`, this one and this group.

    The blocks that are reserved for root do not count. None where the file system does not tell. Raises OSError.
    """
    try:
        status = os.fstatvfs(fd)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise
    if not status.f_blocks:  # a tmpfs without a limit, and FUSE file systems that do not count
        return None
    found = [Free(status.f_bavail * status.f_frsize, False)]
    if has_quota:
        left = (_quota_left(fd, kind, number) for kind, number in ((0, user), (1, group)))
        found += [Free(size, True) for size in left if size is not None]
    return min(found)


def has_quota(device: int) -> bool:
    """Whether users or groups have quotas on the file system of a device, as far as its mount tells. Raises nothing."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = [line.split() for line in file]
    except OSError:  # without /proc nobody can tell
        return False
    return any(words[2] == number and _HAS_QUOTA.search(words[-1]) for words in mounts)


def _quota_left(fd: int, kind: int, number: int) -> Optional[int]:
    """What is left of the quota of a user (0) or group (1); None where there is none, or nobody may ask.

    Python has no function for it. The call is made only where a mount has quotas: a filter of system calls may forbid
    it, and some filters kill.
    """
    try:
        import ctypes

        buffer = ctypes.create_string_buffer(128)
        if ctypes.CDLL(None).syscall(_QUOTACTL_FD, fd, _GET_QUOTA << 8 | kind, number, buffer) != 0:
            return None
    except (ImportError, OSError, AttributeError):
        return None
    hard, soft, used_bytes, *_ = _QUOTA.unpack_from(buffer)
    limit = soft or hard  # beyond the soft limit a time of grace runs, and then it is a hard one
    return max(0, 1024 * limit - used_bytes) if limit else None


class Room:
    """Whether there is room beside `path`, somebody else's file, for what is added to a file of ours bit by bit."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._largest_bytes = 0
        self._until = 0.0
        self._left_bytes = 0

    def has(self, fd: int, size_bytes: int) -> bool:
        """Whether so many bytes more may be written to `fd`. Yes where nobody can tell. Raises nothing."""
        now = time.monotonic()
        if size_bytes > self._left_bytes or not now < self._until <= now + LOOK_LASTS_SECS:
            budget = max(size_bytes, LOOK_LASTS_BYTES)
            self._left_bytes = budget if self._look(fd, budget) else 0
            self._until = now + LOOK_LASTS_SECS
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        return True

    def _look(self, fd: int, size_bytes: int) -> bool:
        try:
            status = os.stat(self._path, follow_symlinks=False)
            if status.st_dev != os.fstat(fd).st_dev:
                return True
            self._largest_bytes = max(self._largest_bytes, status.st_size)
            spared = self._largest_bytes if status.st_size else max(self._largest_bytes, LARGEST_GUESS_BYTES)
            found = free(fd, status.st_uid, status.st_gid, False)
        except (OSError, ValueError):  # no such file, for one: there is nobody to make room for
            return True
        return found is None or found.size_bytes >= needed_bytes(size_bytes, spared)

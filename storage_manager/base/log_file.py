"""The log file: one line an event, rotated, and always the file that its name leads to."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from contextlib import suppress
from typing import Optional

from storage_manager.base.clef import Event
from storage_manager.base.room import Room

# How often the name is looked up. Somebody else's rotation costs no line: until then they go to the renamed file.
LOOK_SECS = 1.0
_OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


class LineHandler(logging.Handler):
    """One line an event, whole or not at all. Lines that cannot be written are dropped and counted; the count comes
    with the next line that can be. Raises nothing."""

    why_dropped = "the log file could not be written"
    fd = -1
    """A descriptor that was lent: it stays open."""

    def __init__(self) -> None:
        super().__init__()
        self._fd = -1
        self._dropped = 0
        self._torn = False
        self._written = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
            if self._dropped and self._has_room():
                line = self._line(self._dropped_notice(record)) + line
            if self._torn:
                line = b"\n" + line
        except Exception:  # noqa: BLE001  # whatever is wrong with a log line must not end a prune
            self._dropped += 1
            return
        left = len(line)
        self._written = 0
        try:
            left = self._write(line)
        except OSError:  # nobody reads any more, or the disk is full; both may pass
            pass
        if left:
            self._dropped += 1
            self._torn = self._torn or self._written > 0
        else:
            self._dropped = 0
            self._torn = False

    def close(self) -> None:
        self.acquire()  # another thread may be about to write, and the number will be some other file's
        try:
            fd, self._fd = self._fd, -1
            if fd not in (-1, self.fd):
                os.close(fd)
        finally:
            self.release()
        super().close()

    def _has_room(self) -> bool:
        """Whether a line can be written without waiting, as far as that can be told."""
        return True

    def _write(self, line: bytes) -> int:
        """Write what finds room in time, and count it in `_written`; how many bytes did not. Raises OSError."""
        raise NotImplementedError

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _dropped_notice(self, record: logging.LogRecord) -> logging.LogRecord:
        lines = "line was" if self._dropped == 1 else "lines were"
        message = f"{self._dropped} log {lines} dropped: {self.why_dropped}"
        constants = record.constants if isinstance(record, Event) else ""
        return Event(
            logging.WARNING, "storage_manager.log_dropped", message, {"dropped_count": self._dropped}, constants
        )


class LogFile(LineHandler):
    """At most `most_bytes` in the file, and as many in each of `backups` older ones (`.1`, `.2`, ...).

    A file that was removed is created again with the next line; one that was renamed or replaced is left within a
    second. Where no new file can be opened, lines go on to the old one for as long as that has a name; then they are
    dropped and counted. A symbolic link is followed only if root or this user owns it: whoever else may put one there
    would choose which file is written. Not promised: that nobody swaps a link of ours in the moment of opening it.
    Creating it raises OSError, and ValueError for a path that cannot be one.
    """

    def __init__(self, path: str, most_bytes: int, backups: int, room: Optional[Room] = None) -> None:
        """Lines that there is no `room` for are dropped."""
        super().__init__()
        self._room = room
        self._path = os.path.abspath(path)
        self._most_bytes = most_bytes
        self._backups = backups
        self._fd = self._open()
        self._look_at = time.monotonic() + LOOK_SECS

    def look_now(self) -> None:
        """Look the name up before the next line."""
        self._look_at = 0.0

    def _write(self, line: bytes) -> int:
        status = os.fstat(self._fd)
        if status.st_nlink == 0 or time.monotonic() >= self._look_at:
            self._follow()
            status = os.fstat(self._fd)
        # Once more: another process may have rotated the file since the last look.
        if self._is_full(status, line) and not (self._follow() and not self._is_full(os.fstat(self._fd), line)):
            self._rotate()
        left = line if self._room is None or self._room.has(self._fd, len(line)) else b""
        dropped = len(line) - len(left)
        while left:
            written = os.write(self._fd, left)
            self._written += written
            left = left[written:]
        return dropped

    def _is_full(self, status: os.stat_result, line: bytes) -> bool:
        return status.st_size > 0 and status.st_size + len(line) > self._most_bytes

    def _follow(self) -> bool:
        """Write to what the name leads to from now on. Whether that is another file. Raises OSError."""
        self._look_at = time.monotonic() + LOOK_SECS
        before = os.fstat(self._fd)
        try:
            self._replace(self._open())
        except OSError:
            if before.st_nlink == 0:
                raise  # whatever is written there is lost
        return not os.path.samestat(before, os.fstat(self._fd))

    def _rotate(self) -> None:
        for number in range(self._backups, 0, -1):
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            with suppress(FileNotFoundError):
                os.replace(newer, f"{self._path}.{number}")
        self._replace(self._open())

    def _open(self) -> int:
        try:
            fd = os.open(self._path, _OPEN | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            owner = os.lstat(self._path).st_uid
            if owner not in (0, os.geteuid()):
                why = f"it is a symbolic link of user {owner}; only one of root or of this user is followed"
                raise OSError(errno.ELOOP, why) from None
            fd = os.open(self._path, _OPEN, 0o666)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")

    def _replace(self, fd: int) -> None:
        # In this order: a signal in between must not leave a number behind that is some other file's by then.
        old, self._fd = self._fd, fd
        os.close(old)

"""The next metadata.json while it is prepared: a temporary file beside it, like the one that it is to replace."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

from storage_manager.base import room
from storage_manager.base.errors import LockLost, NoRoom, NotWritable, StoreError, errno_name, failing_as
from storage_manager.store.directory import CREATE, Store, close, write_all
from storage_manager.store.likeness import ACCESS_LIST, NO_ATTRIBUTE, Likeness
from storage_manager.store.names import METADATA_NAME, TMP_NAME

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK_BYTES = 1 << 20

# What vouches for no clock is dated to a full millisecond, rounded up. A client's write is not, but one in a million.
_MARK_NS = 1_000_000


def vouches(status: os.stat_result) -> bool:
    """Whether the time of metadata.json was right when it was written, as far as that can be told.

    False also on file systems whose times are no finer than the mark.
    """
    return status.st_mtime_ns % _MARK_NS != 0


class Draft:
    """A temporary file that can take the place of metadata.json.

    Write (as often as needed), examine, publish. Or discard: after any failure of write() it must be.
    """

    def __init__(self, store: Store, like: Likeness) -> None:
        """Create the file. Raises NotWritable when its owner, group or mode cannot be those of `like`; StoreError."""
        self._store = store
        self.like = like
        self._written_bytes = 0
        remove_leftover(store)
        with failing_as("create", store.file(TMP_NAME)):
            self._fd = store.open(TMP_NAME, CREATE)
        try:
            self._claim()
            self._take_on(like)
        except BaseException:
            self.discard()
            raise

    def write(self, chunks: Iterable[bytes], size_bytes: int, vouches: bool = False) -> None:
        """Make `chunks` the whole content, durably. Raises StoreError, and like require_room() for `size_bytes`, which
        neither this file nor the one that it replaces is larger than.

        Its time `vouches` for the clock if that is known to be right.

        Only what differs from an earlier attempt is written, so that a second attempt, with an entry more at
        the end, is quick enough to fit between two of a busy client's writes.
        """
        with failing_as("write", self._store.file(TMP_NAME)):
            offset = 0
            same = True
            for chunk in _gathered(chunks):
                if not same or os.pread(self._fd, len(chunk), offset) != chunk:
                    same = False
                    self.require_room(size_bytes)
                    write_all(self._fd, chunk, offset)
                    self._written_bytes = max(self._written_bytes, offset + len(chunk))
                offset += len(chunk)
            os.ftruncate(self._fd, offset)
            self._written_bytes = offset
            if not vouches:
                self._mark()
            os.fsync(self._fd)
        self.require_room(size_bytes)  # a slow disk may have taken seconds for that, and the client goes on saving

    def require_room(self, size_bytes: int, more_bytes: int = 0) -> None:
        """Make sure that a client can write a file of `size_bytes` anew at any moment: when this one has all of its
        bytes, and something else of ours has `more_bytes`. Raises NoRoom, StoreError.
        """
        with failing_as("examine the file system of", self._store.path):
            found = room.free(self._fd, self.like.user, self.like.group, self._has_quota)
        needed_bytes = room.needed_bytes(max(0, size_bytes - self._written_bytes) + more_bytes, size_bytes)
        if found is not None and found.size_bytes < needed_bytes:
            raise NoRoom(self._store.file(METADATA_NAME), found.size_bytes, needed_bytes, found.is_quota)

    def try_size(self, size_bytes: int) -> None:
        """Find out whether a file may be as large, and have any block at all. Raises StoreError, and like
        require_room().

        One block: a larger trial could take the last of a nearly full disk from a client that is writing.
        """
        with failing_as("write", self._store.file(TMP_NAME)):
            os.ftruncate(self._fd, size_bytes)
            self.require_room(size_bytes)
            write_all(self._fd, b" ", 0)

    def examine(self) -> os.stat_result:
        """What is going to be published. Raises StoreError, and LockLost when the name leads elsewhere."""
        with failing_as("examine", self._store.file(TMP_NAME)):
            mine = os.fstat(self._fd)
            named = self._store.stat(TMP_NAME)
        if not os.path.samestat(mine, named):
            raise LockLost(f"{self._store.file(TMP_NAME)} was replaced by somebody else's: another prune is running")
        return mine

    def publish(self) -> None:
        """Rename over metadata.json: from here on the store's truth. Raises StoreError."""
        with failing_as("replace", self._store.file(METADATA_NAME)):
            self._store.rename(TMP_NAME, METADATA_NAME)
        self._close()

    def publish_new(self) -> None:
        """Take the name metadata.json if nothing has it yet; otherwise nothing happens.

        The name is not on the disk before the directory is synced, as it is by the next commit. Raises StoreError;
        also where the file system has no hard links.
        """
        try:
            # Not a rename: that would replace what a client has created meanwhile.
            self._store.link(TMP_NAME, METADATA_NAME)
        except FileExistsError:
            pass
        except OSError as error:
            remedy = "let the service create it first, as it does when it starts"
            raise StoreError("create", self._store.file(METADATA_NAME), error, remedy) from error
        self.discard()

    def discard(self) -> None:
        """Remove the file, as far as that is possible; a leftover is removed by the next run."""
        if self._fd >= 0:
            self._close()
            with suppress(OSError):
                self._store.unlink(TMP_NAME)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        close(fd)

    def _claim(self) -> None:
        """Lock the draft: where the prune lock has been broken, another run must not take it for a leftover."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockLost(f"{self._store.file(TMP_NAME)} was taken by another prune that is running") from None
        except OSError:  # then this file system is one where the prune lock cannot have been taken either
            pass

    def _mark(self) -> None:
        written_ns = os.fstat(self._fd).st_mtime_ns
        marked_ns = written_ns + -written_ns % _MARK_NS
        with suppress(OSError):  # then it looks like a client's, as before there were marks
            os.utime(self._fd, ns=(marked_ns, marked_ns))

    def _take_on(self, like: Likeness) -> None:
        draft, file = self._store.file(TMP_NAME), self._store.file(METADATA_NAME)
        belongs = f"{file} belongs to user {like.user}, group {like.group}, and a new one would not"
        # While the file is ours: setting attributes takes the right to write to it.
        for name, value in like.attributes.items():
            if name != ACCESS_LIST:
                with failing_as(f"copy the extended attribute {name} of {file} to", draft):
                    os.setxattr(self._fd, name, value)
        try:
            status = os.fstat(self._fd)
            if (status.st_uid, status.st_gid) != (like.user, like.group):
                os.fchown(self._fd, like.user, like.group)
            if ACCESS_LIST not in like.attributes:
                _drop_access_list(self._fd)
            os.fchmod(self._fd, like.mode)
            if ACCESS_LIST in like.attributes:
                os.setxattr(self._fd, ACCESS_LIST, like.attributes[ACCESS_LIST])
            status = os.fstat(self._fd)
            self._has_quota = room.has_quota(status.st_dev)
        except PermissionError as error:
            raise NotWritable(
                f"{belongs} ({errno_name(error.errno)}): run storage_manager as that user or as root"
            ) from error
        except OSError as error:
            raise StoreError("set the owner and mode of", draft, error) from error
        if not like.shown_by(status):  # some file systems accept what they do not do
            raise NotWritable(
                f"{belongs}: asked for these and mode {like.mode:04o}, the file system gave user {status.st_uid}, "
                f"group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}. Look at the options of its mount"
            )


def _drop_access_list(fd: int) -> None:
    """Remove the list that a new file inherits from its directory: the file's own mode shall decide. Raises OSError."""
    try:
        os.removexattr(fd, ACCESS_LIST)
    except OSError as error:
        if error.errno not in NO_ATTRIBUTE:
            raise


def remove_leftover(store: Store) -> bool:
    """Remove a draft that a dead process left; False when there is none. Raises StoreError, LockLost."""
    try:
        fd = store.open(TMP_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # no draft of ours, and in the way
        return store.remove(TMP_NAME)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockLost(f"{store.file(TMP_NAME)} belongs to another prune that is running") from None
    except OSError:
        pass
    finally:
        close(fd)
    return store.remove(TMP_NAME)


def _gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth a system call."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _CHUNK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)

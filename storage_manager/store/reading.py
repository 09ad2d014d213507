"""metadata.json, read stably: complete and unchanged, although its owner rewrites it in place without a lock."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional, TypeVar

from storage_manager.base.clock import Patience
from storage_manager.base.errors import MetadataBusy, MetadataCorrupt, MetadataTorn, StoreError, failing_as
from storage_manager.store.directory import Store, close
from storage_manager.store.document import Document, NotJson, parse
from storage_manager.store.names import METADATA_NAME

if TYPE_CHECKING:
    from storage_manager.store.likeness import Likeness  # whoever only reads needs none

# How long a file may stay torn before it counts as corrupt: a client with a very large store needs seconds
# for one save, and one on a slow disk a multiple of that.
READ_PATIENCE_SECS = 30.0

# Between two looks at a torn file. A busy client leaves its file whole only for as long as it reads and parses it, some
# 10 ns a byte: looking less often would miss that moment. Where nobody writes, there is none to be missed.
SHORTEST_PAUSE_SECS = 0.0002
LONGEST_PAUSE_SECS = 0.02
_PAUSE_SECS_PER_BYTE = 4e-9

# Far above any real store (a million sessions take about 250 MB): a sparse or runaway file must not be
# read into memory.
LARGEST_BYTES = 2 << 30
_CHUNK_BYTES = 1 << 20
Parsed = TypeVar("Parsed")


class Identity(NamedTuple):
    """What must stay the same for a file to be the one that was read."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int


class Reading:
    """A stable read: the open descriptor, the bytes, and the document in them. Close it."""

    def __init__(self, path: str, fd: int, status: os.stat_result, data: bytes) -> None:
        self.path = path
        self.fd = fd
        self.status = status
        self.data = data

    def keys(self) -> list[str]:
        """What metadata.json had entries for."""
        return parse(self.data).keys

    def unchanged(self) -> bool:
        """Whether the inode that was read still has the bytes that were read. Raises StoreError.

        The bytes themselves are compared: a rewrite of the same length within one tick of the file system's
        clock changes neither the size nor the time stamp.
        """
        with failing_as("read again", self.path):
            return _identity(os.fstat(self.fd)) == _identity(self.status) and _same_bytes(self.fd, self.data)

    def close(self) -> None:
        close(self.fd)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_stable(store: Store, patience: Patience, read: Callable[[bytes], Parsed]) -> Optional[tuple[Reading, Parsed]]:
    """Read metadata.json when it is whole, retrying while it is torn; None when there is none.

    Guarantees that the bytes were in the file all at one time, and are one complete JSON object. Raises
    MetadataCorrupt when patience ends first (MetadataBusy if somebody wrote all the time), StoreError when it cannot be
    read at all.
    """
    pauses = _Pauses()
    rejected: Optional[tuple[Identity, str]] = None
    before: Optional[os.stat_result] = None
    while True:
        try:
            return _attempt(store, read, rejected)
        except _Rejected as error:
            rejected = error.identity, str(error)
            problem = str(error)
        except NotJson as error:
            problem = str(error)
        if patience.exhausted():
            raise _unreadable(store, problem, before)
        now = store.status(METADATA_NAME)
        before = before or now
        patience.pause(pauses.next(now))


def _unreadable(store: Store, problem: str, before: Optional[os.stat_result]) -> MetadataTorn:
    """Why patience has ended: `before` is what the file was when it began."""
    if before is not None and not is_named(store, METADATA_NAME, before):
        return MetadataBusy(
            f"{store.file(METADATA_NAME)} was written again and again, and never whole ({problem})",
            "Try again when the service is less busy",
        )
    return MetadataTorn(
        f"{store.file(METADATA_NAME)} is not readable as JSON ({problem})",
        "Unless a client is still writing it: stop the service, repair the file or restore it from a backup, and "
        "start again",
    )


def read_document(store: Store, patience: Patience) -> Optional[tuple[Reading, Document]]:
    """read_stable() for whoever wants to know where the members are."""
    return read_stable(store, patience, parse)


class _Rejected(NotJson):
    """A stable read whose bytes do not parse."""

    def __init__(self, identity: Identity, problem: str) -> None:
        self.identity = identity
        super().__init__(problem)


def _attempt(
    store: Store, read: Callable[[bytes], Parsed], rejected: Optional[tuple[Identity, str]]
) -> Optional[tuple[Reading, Parsed]]:
    """One stable read. Raises NotJson when this was not the moment, and else like read_stable()."""
    fd = _open(store)
    if fd is None:
        return None
    try:
        status = _regular(store, fd)
        if rejected is not None and rejected[0] == _identity(status):
            raise _Rejected(*rejected)  # the same bytes parse no better the second time
        data = _read_whole(store, METADATA_NAME, fd, status)
        if not is_named(store, METADATA_NAME, status):
            raise NotJson("it is being replaced")
        try:
            return Reading(store.file(METADATA_NAME), fd, status, data), read(data)
        except NotJson as error:
            raise _Rejected(_identity(status), str(error)) from error
    except BaseException:
        close(fd)
        raise


def read_descriptor(store: Store, fd: int, name: str, patience: Patience) -> Optional[Document]:
    """The document in an inode that may have no name any more; None when patience ends before it is whole.

    Raises StoreError, for what was once called `name`, when the last attempt to read it fails.
    """
    pauses = _Pauses()
    status: Optional[os.stat_result] = None
    while True:
        failure: Optional[StoreError] = None
        try:
            with failing_as("examine", store.file(name)):
                status = os.fstat(fd)
                if status.st_size > LARGEST_BYTES:  # no store is that large, and reading it would end the process
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return parse(_read_whole(store, name, fd, status))
        except NotJson:
            pass
        except StoreError as error:
            failure = error
        if patience.exhausted():
            if failure is not None:
                raise failure
            return None
        patience.pause(pauses.next(status))


def is_named(store: Store, name: str, status: os.stat_result, like: Optional[Likeness] = None) -> bool:
    """Whether `name` still leads to that very file, unchanged in size and time, and in what `like` says of its owner.

    Raises StoreError.
    """
    found = store.status(name)
    if found is None or _identity(found) != _identity(status):
        return False
    return like is None or like.shown_by(found)


def _identity(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _open(store: Store) -> Optional[int]:
    with failing_as("read", store.file(METADATA_NAME)):
        try:
            return store.open(METADATA_NAME)
        except FileNotFoundError:
            return None


def _regular(store: Store, fd: int) -> os.stat_result:
    with failing_as("examine", store.file(METADATA_NAME)):
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise MetadataCorrupt(f"{store.file(METADATA_NAME)} is not a regular file", "Put the real one in its place")
    if status.st_size > LARGEST_BYTES:
        raise MetadataCorrupt(
            f"{store.file(METADATA_NAME)} is too large to be real ({status.st_size} bytes)", "Look at it"
        )
    return status


def _read_whole(store: Store, name: str, fd: int, before: os.stat_result) -> bytes:
    """All the bytes. Raises NotJson when the file is torn or changes on the way, StoreError on failure."""
    with failing_as("read", store.file(name)):
        _refuse_torn(fd, before.st_size)
        data = _read_at(fd, before.st_size + 1, 0)
        if len(data) != before.st_size or _identity(os.fstat(fd)) != _identity(before):
            raise NotJson("it is being written")
        # A second look at the bytes: a rewrite within one tick of the clock leaves no other trace.
        if not _same_bytes(fd, data):
            raise NotJson("it is being written")
        return data


def _refuse_torn(fd: int, size: int) -> None:
    """A cheap first look, so that a torn file is not read whole over and over. Raises NotJson."""
    head = os.pread(fd, 64, 0).lstrip()
    if not size:
        raise NotJson("it is empty")
    if head and head[:1] != b"{":
        raise NotJson("it does not begin with an object")
    tail = _read_at(fd, min(64, size), max(0, size - 64)).rstrip()
    if tail and tail[-1:] != b"}":
        raise NotJson("it ends before its closing brace, as after an interrupted write")


def _same_bytes(fd: int, data: bytes) -> bool:
    for offset in range(0, len(data), _CHUNK_BYTES):
        # Slices of bytes are compared by memcmp; those of a memoryview one element after the other.
        expected = data[offset : offset + _CHUNK_BYTES]
        if _read_at(fd, len(expected), offset) != expected:
            return False
    return True


def _read_at(fd: int, length: int, offset: int) -> bytes:
    """As many bytes as there are, up to `length`: one read may give fewer."""
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


class _Pauses:
    """How long to pause between two looks at a torn file: so briefly that its next whole moment is not missed."""

    def __init__(self) -> None:
        self._seen: Optional[Identity] = None
        self._largest_bytes = 0
        self._secs = SHORTEST_PAUSE_SECS

    def next(self, status: Optional[os.stat_result]) -> float:
        """`status` is the file's by now."""
        now = None if status is None else _identity(status)
        if now is None or now == self._seen:
            self._secs *= 2
        else:
            self._seen = now
            self._largest_bytes = max(self._largest_bytes, now.size_bytes)
            self._secs = max(SHORTEST_PAUSE_SECS, self._largest_bytes * _PAUSE_SECS_PER_BYTE)
        self._secs = min(self._secs, LONGEST_PAUSE_SECS)
        return self._secs

"""The names beside metadata.json that keep a replaced file reachable: `.metadata.json.prev*` until what was written
to it is safe, `.metadata.json.torn-*` for what nobody finished writing.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import CommitContended, StoreError, failing_as
from storage_manager.base.log import EventLog
from storage_manager.base.times import from_timestamp
from storage_manager.store.directory import CREATE, Store, close, write_all
from storage_manager.store.names import ASIDE_PREFIX, FORMAT, GUID, METADATA_NAME, PREV_NAME, previous_names

NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_CHUNK_BYTES = 1 << 20

_guids_in = re.compile(f"(?=({GUID}))".encode()).findall
_formats_in = re.compile(rf'"format"\s{{0,4}}:\s{{0,4}}"({FORMAT})"'.encode()).findall
_OVERLAP_BYTES = 128
"""More than the longest of what is searched for."""


def link_previous(store: Store, most: int) -> Optional[str]:
    """Give the current file a second name, so that it stays reachable when we die after the rename.

    None where the file system has no hard links. Raises StoreError, and CommitContended when no name is free.
    """
    for name in previous_names(most):
        try:
            store.link(METADATA_NAME, name)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno in NO_HARD_LINKS:
                return None
            raise StoreError("link", store.file(name), error) from error
        return name
    raise CommitContended(
        f"{most} files {store.file(PREV_NAME)}* wait until what they tell of is certain to stay; no session was lost"
    )


def unlink_previous(store: Store, name: Optional[str]) -> None:
    """Give a second name up; None, and one that is gone, are no error. Raises StoreError."""
    if name is not None:
        store.remove(name)


def open_previous(store: Store, name: str) -> int:
    """Raises StoreError."""
    with failing_as("open", store.file(name)):
        return store.open(name)


def restore_metadata(store: Store, log: EventLog, name: str) -> None:
    """Where metadata.json is missing, the previous file becomes it. Raises StoreError."""
    with failing_as("restore", store.file(METADATA_NAME)):
        store.link(name, METADATA_NAME)
    log.warning(
        "storage_manager.recovered",
        f"{store.file(METADATA_NAME)} was missing; it is restored from {name}, which a run that died left",
        what="restored",
        file=name,
    )


def move_aside(store: Store, clock: Clock, log: EventLog, name: str, is_whole: bool = False) -> None:
    """Keep a file under a name that nobody waits for. Raises StoreError."""
    aside = _aside_name(clock)
    with failing_as("rename", store.file(name)):
        store.rename(name, aside)
    _report_aside(store, log, aside, is_whole)


def copy_aside(store: Store, clock: Clock, log: EventLog, fd: int, is_whole: bool) -> None:
    """Keep the text of a file that has no name any more, durably: it is the only copy. Raises StoreError."""
    aside = _aside_name(clock)
    with failing_as("write", store.file(aside)):
        try:
            target = store.open(aside, CREATE)
            try:
                _copy(fd, target)
                os.fsync(target)
                os.fsync(store.dir_fd)
            finally:
                close(target)
        except OSError:
            with suppress(OSError):  # half a copy is worth nothing
                store.unlink(aside)
            raise
    _report_aside(store, log, aside, is_whole)


def _copy(source: int, target: int) -> None:
    offset = 0
    while data := os.pread(source, _CHUNK_BYTES, offset):
        write_all(target, data, offset)
        offset += len(data)


def _aside_name(clock: Clock) -> str:
    # The random part keeps one from replacing another, whatever the clock does.
    return f"{ASIDE_PREFIX}{clock.now():%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}"


def _report_aside(store: Store, log: EventLog, aside: str, is_whole: bool) -> None:
    path = store.file(aside)
    log.warning(
        "storage_manager.recovered",
        f"a write overlapped the commit, and it is not certain that the merge lasts; {path} is kept for the next run"
        if is_whole
        else f"a client died while it wrote the metadata; its unfinished text is kept in {path}. "
        f"Sessions missing since can be looked up there; delete it when nothing is missed",
        what="kept_aside",
        file=aside,
    )


class Told(NamedTuple):
    """What a text tells of, be it torn."""

    modified_at: datetime
    guids: set[str]
    formats: set[str]


def told_by(store: Store, name: str) -> Told:
    """Raises StoreError."""
    fd = open_previous(store, name)
    with open(fd, "rb") as file, failing_as("read", store.file(name)):
        told = Told(from_timestamp(os.fstat(fd).st_mtime), set(), set())
        tail = b""
        while data := file.read(_CHUNK_BYTES):
            text = tail + data
            told.guids.update(guid.decode() for guid in _guids_in(text))
            told.formats.update(extension.decode() for extension in _formats_in(text))
            tail = text[-_OVERLAP_BYTES:]
    return told

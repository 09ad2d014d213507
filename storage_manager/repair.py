"""What mends a store when it is asked to: entries for orphans, and the removal of what refers to nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import NamedTuple

from storage_manager import report
from storage_manager.clock import Clock
from storage_manager.document import parse
from storage_manager.draft import Draft
from storage_manager.edit import Removal
from storage_manager.entry import utc_text
from storage_manager.errors import failing_as
from storage_manager.logs import EventLog
from storage_manager.model import Session
from storage_manager.orphans import adoptable, entries_text, without_entry
from storage_manager.previous import open_previous, previous_names
from storage_manager.store import Store
from storage_manager.transaction import Progress, Transaction, reporting, transaction

_GUID_BYTES = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").findall

# What a client creates metadata.json with, whatever else its umask leaves.
_FILE_MODE = 0o666


class Terms(NamedTuple):
    """Which store to lock, for which command, and how patiently."""

    storage_dir: str
    command: str
    lock_timeout_secs: float
    lock_stale_secs: float


class Adoption(NamedTuple):
    """What came of giving orphans their entries back."""

    adopted: Sequence[Session]
    left_count: int
    """Orphans that could not be given one."""

    @property
    def adopted_bytes(self) -> int:
        return sum(orphan.size_bytes for orphan in self.adopted)


def adopt(terms: Terms, group: str, clock: Clock, log: EventLog) -> Adoption:
    """Give every orphan an entry: guid and format from its name, size and time from the file, and `group`.

    Left are orphans whose name no entry could have, and those whose guid has an entry or several blobs. Raises a
    StorageManagerError after the event that says so, and Interrupted.
    """
    with reporting("adopt", terms.storage_dir, Progress(), log):
        with transaction(*terms, clock, log) as changing:
            return _adopt(terms, group, changing, log)


def _adopt(terms: Terms, group: str, changing: Transaction, log: EventLog) -> Adoption:
    snapshot, reading = changing.look()
    with reading or nullcontext():
        keys = parse(reading.data).keys if reading is not None else ()
        chosen, left = adoptable(snapshot.anomalies, keys)
        if chosen and reading is not None:
            changing.committer.prepare(reading)
    adopted: Sequence[Session] = ()
    if chosen:
        if reading is None:
            _create_metadata(changing.store, chosen[-1])
        changing.committer.add(parse(entries_text(chosen, group)))
        # A client at work may have undone it, or deleted one of them meanwhile.
        snapshot, reading = changing.look()
        with reading or nullcontext():
            guids = {session.guid for session in snapshot.sessions}
            adopted = [orphan for orphan in chosen if orphan.guid in guids]
    adoption = Adoption(adopted, len(chosen) - len(adopted) + len(left))
    for orphan in adopted:
        log.info(
            "storage_manager.adopt.adopted",
            f"gave {orphan.blob_name} an entry",
            guid=orphan.guid,
            size_bytes=orphan.size_bytes,
            created_at=utc_text(orphan.created_at),
            group=group,
        )
    log.info(
        "storage_manager.adopt.summary",
        f"{report.counted(len(adopted), 'orphan')}, {report.size(adoption.adopted_bytes)}, adopted; "
        f"{adoption.left_count} left",
        adopted_count=len(adopted),
        adopted_bytes=adoption.adopted_bytes,
        left_count=adoption.left_count,
        group=group,
        storage_dir=terms.storage_dir,
    )
    return adoption


def _create_metadata(store: Store, like: Session) -> None:
    """Where there is no metadata.json, an empty one as the client that wrote a blob would have made it."""
    with failing_as("examine", store.file(like.blob_name)):
        status = os.stat(like.blob_name, dir_fd=store.dir_fd, follow_symlinks=False)
    fields = list(status)
    fields[0] = status.st_mode & ~0o7777 | status.st_mode & _FILE_MODE
    draft = Draft(store, os.stat_result(fields), None)
    try:
        draft.write([b"{}"])
        draft.publish_new()
    finally:
        draft.discard()


class Repair(NamedTuple):
    """What came of a repair."""

    swept_count: int
    """Dangling entries removed."""
    removed: Sequence[str]
    """Files of unfinished metadata in which nothing was that is missing."""
    kept: Sequence[str]
    """Those that may tell something of an orphan."""


def repair(terms: Terms, clock: Clock, log: EventLog) -> Repair:
    """Remove dangling entries, and what runs and clients that died have left beside metadata.json.

    Unfinished metadata stays while it names a blob that has no entry: it is the only thing that tells of it. Raises
    like adopt().
    """
    with reporting("repair", terms.storage_dir, Progress(), log):
        with transaction(*terms, clock, log) as changing:
            return _repair(terms, changing, log)


def _repair(terms: Terms, changing: Transaction, log: EventLog) -> Repair:
    store, committer = changing.store, changing.committer
    if any(os.path.lexists(store.file(name)) for name in previous_names()):
        committer.recover()  # what the first recovery has put back is made sure of by the second
    snapshot, reading = changing.look()
    with reading or nullcontext():
        removal = Removal(store, (), {session.guid for session in snapshot.dangling})
        known = None
        if reading is not None and snapshot.dangling:
            committer.prepare(reading)
            known = parse(reading.data).fingerprint()
    if known is not None:
        committer.commit(removal, known)
    orphans = without_entry(snapshot.anomalies)
    removed: list[str] = []
    kept: list[str] = []
    for name in snapshot.torn:
        (kept if _names_any(store, name, orphans) else removed).append(name)
    for name in removed:
        with failing_as("remove", store.file(name)), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=store.dir_fd)
        log.info("storage_manager.repair.removed", f"removed {store.file(name)}", file=name)
    result = Repair(removal.swept_count, removed, kept)
    log.info(
        "storage_manager.repair.summary",
        f"removed {report.counted(result.swept_count, 'dangling entry')} and "
        f"{report.counted(len(removed), 'file')} of unfinished metadata",
        swept_count=result.swept_count,
        removed_count=len(removed),
        kept_count=len(kept),
        storage_dir=terms.storage_dir,
    )
    return result


def _names_any(store: Store, name: str, guids: set[str]) -> bool:
    fd = open_previous(store, name)
    with open(fd, "rb") as file, failing_as("read", store.file(name)):
        return any(guid.decode() in guids for guid in _GUID_BYTES(file.read()))

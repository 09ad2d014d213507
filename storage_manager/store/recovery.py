"""What has to be put back: after a run that died, from a writer that finished late, and as orphans' entries.

Putting back is not like removing: a client that read before it and writes after it undoes it. So an old file is given
up only when the result is there to stay.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Optional

from storage_manager.base.clock import Patience
from storage_manager.base.errors import CommitContended, NoRoom, StorageManagerError, StoreError, failing_as
from storage_manager.base.times import from_timestamp
from storage_manager.store.aside import move_aside, open_previous, restore_metadata
from storage_manager.store.commit import PUT_BACK_PATIENCE_SECS, Committer
from storage_manager.store.directory import close
from storage_manager.store.document import Document, parse
from storage_manager.store.draft import remove_leftover
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS, previous_names
from storage_manager.store.reading import (
    LONGEST_PAUSE_SECS,
    READ_PATIENCE_SECS,
    is_named,
    read_descriptor,
    read_stable,
)

# From reading metadata.json to opening it for writing, a client takes this long at most: mostly for parsing it.
REWRITE_SECS = 1.0
REWRITE_SECS_PER_BYTE = 0.1 / (1 << 20)

# One name more than commits may use: merging the last of the old files takes a commit, too.
_MOST_NAMES = MOST_PREVIOUS + 1


def recover(committer: Committer) -> None:
    """Finish or undo what a process that died in the middle of a commit left. Raises like commit()."""
    committer.close()  # an own draft is no leftover
    if remove_leftover(committer.store):
        committer.log.info("storage_manager.recovered", "removed the unfinished draft of a run that died", what="draft")
    names = previous_names(_MOST_NAMES)
    current = committer.store.status(METADATA_NAME)
    found = {name: status for name in names if (status := committer.store.status(name)) is not None}
    # A second name of the current file comes first: it takes no commit to give it up, and that frees a name.
    second = [name for name in found if current is not None and os.path.samestat(current, found[name])]
    if current is not None and len(found) == len(names) and not second:
        move_aside(committer.store, committer.clock, committer.log, names[-1], is_whole=True)
        del found[names[-1]]
    for name in (*second, *(name for name in reversed(found) if name not in second)):
        try:
            _recover_previous(committer, name, found[name])
        except NoRoom as error:
            _report_pending(committer, name, error)
            break
        except CommitContended:
            break  # the next run looks again, also at the others


def _recover_previous(committer: Committer, name: str, status: os.stat_result) -> None:
    store = committer.store
    if not stat.S_ISREG(status.st_mode):
        raise StorageManagerError(f"{store.file(name)} is not a regular file: move it away")
    fd = open_previous(store, name)
    try:
        current = store.status(METADATA_NAME)
        if current is None:
            restore_metadata(store, committer.log, name)
        elif not os.path.samestat(current, status):
            patience = Patience(committer.clock, READ_PATIENCE_SECS, 0.0)
            late = read_descriptor(store, fd, name, patience)
            if late is None:
                committer.clock.check()
                move_aside(store, committer.clock, committer.log, name)
                return
            await_rewrite(committer)
            if not committer.put_back(late, _base_of(committer, fd, name), "commit", _MOST_NAMES):
                return  # the next run looks again
    finally:
        close(fd)
    store.remove(name)


def _base_of(committer: Committer, fd: int, name: str) -> Optional[Document]:
    """What the writer of an old file started from, as far as that can be told.

    The current document still has it, unless a client has written that since. Raises like commit().
    """
    found = read_stable(committer.store, Patience(committer.clock, READ_PATIENCE_SECS, 0.0), parse)
    if found is None:
        return None
    reading, document = found
    with reading, failing_as("examine", committer.store.file(name)):
        return document if reading.status.st_mtime_ns < os.fstat(fd).st_mtime_ns else None


def recover_torn(committer: Committer, names: Sequence[str]) -> tuple[bool, list[str], Optional[StoreError]]:
    """Merge what was kept aside as torn and has been finished by its writer after all.

    Returns whether any was, which of these wait for the next run, and why one cannot be read. Raises like commit().
    """
    merged, unread = False, None
    unmerged: list[str] = []
    for name in names:
        try:
            late = _read_aside(committer, name)
        except StoreError as error:
            unread = error
            committer.log.warning(
                "storage_manager.recovered",
                f"{error}; it is passed over. Sessions that only it tells of are orphans until it can be read. "
                f"Move it away if nothing is missed",
                what="passed_over",
                file=name,
            )
            continue
        if late is None:
            continue  # still torn
        merged = True
        await_rewrite(committer)
        try:
            if committer.put_back(late, None, "torn"):
                committer.store.remove(name)
                continue
        except NoRoom as error:
            _report_pending(committer, name, error)
        except CommitContended:
            pass
        unmerged.append(name)
    return merged, unmerged, unread


def _report_pending(committer: Committer, name: str, no_room: NoRoom) -> None:
    committer.log.warning(
        "storage_manager.recovered",
        f"{no_room}; {name}, which is to be merged, is kept for the next run",
        what="pending",
        file=name,
        free_bytes=no_room.free_bytes,
        needed_bytes=no_room.needed_bytes,
    )


def _read_aside(committer: Committer, name: str) -> Optional[Document]:
    """None while it is torn. Raises StoreError."""
    fd = open_previous(committer.store, name)
    try:
        return read_descriptor(committer.store, fd, name, Patience(committer.clock, 0.0, 0.0))
    finally:
        close(fd)


def add_entries(committer: Committer, entries: Document) -> bool:
    """Add those entries that metadata.json lacks and whose blob is there. Whether they are there to stay.

    Not if a client at full speed, one that read before it and writes after it, undoes it time and again: then the
    blobs are without entries as before. Raises like commit(), and Interrupted.
    """
    patience = Patience(committer.clock, PUT_BACK_PATIENCE_SECS, 0.0)
    while True:
        try:
            if committer.put_back(entries, None, None):
                return True
        except NoRoom:
            raise
        except CommitContended:
            pass
        if patience.exhausted():
            return False
        await_rewrite(committer)


def await_rewrite(committer: Committer) -> None:
    """Let a client write that read metadata.json before an earlier run put an entry back into it.

    That write undoes it, and must not come after the run that finds the entry in place and gives the old
    file up. Raises StoreError, Interrupted.
    """
    status = committer.store.status(METADATA_NAME)
    if status is None:  # the merge says what is wrong
        return
    secs = REWRITE_SECS + REWRITE_SECS_PER_BYTE * status.st_size
    age_secs = (committer.clock.now() - from_timestamp(status.st_mtime)).total_seconds()
    patience = Patience(committer.clock, min(secs, secs - age_secs), 0.0)
    while not patience.exhausted() and is_named(committer.store, METADATA_NAME, status):
        patience.pause(LONGEST_PAUSE_SECS)
    committer.clock.check()

"""What is around every run that changes a store: the lock, and recovery before anything else."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from errno import ENOENT
from typing import Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    CommitContended,
    MetadataCorrupt,
    NoRoom,
    StorageManagerError,
    StoreError,
    StoreGone,
    failing_as,
)
from storage_manager.base.log import EventLog
from storage_manager.base.quantity import counted
from storage_manager.store.aside import told_by
from storage_manager.store.commit import COMMIT_PATIENCE_SECS, COMMIT_PATIENCE_SECS_PER_BYTE, Committer
from storage_manager.store.directory import Store, open_store
from storage_manager.store.document import Fingerprint, parse
from storage_manager.store.draft import DISK_FULL
from storage_manager.store.edit import Removal
from storage_manager.store.lock import PruneLock, acquire_lock
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS, previous_names
from storage_manager.store.reading import Reading
from storage_manager.store.recovery import add_entries, recover, recover_torn
from storage_manager.store.snapshot import Snapshot
from storage_manager.store.survey import survey

Tell = Callable[[Collection[str]], None]

_DISAPPEARED = "has disappeared in the middle of the run: it was removed, moved or unmounted"


class LockedStore:
    """A store under the prune lock, with nothing left over from a run that died.

    Look, prepare with what was read, delete blobs, and remove_entries() as often as needed, at least at the end.
    """

    def __init__(self, store: Store, lock: PruneLock, committer: Committer, clock: Clock, log: EventLog) -> None:
        self.store = store
        self.lock = lock
        self._committer = committer
        self._clock = clock
        self._log = log
        self._known: Optional[Fingerprint] = None
        self.unmerged: list[str] = []
        """Texts kept aside whose entries are not yet certain to stay."""
        self._unread: Optional[StoreError] = None
        self._size_bytes = 0

    def look(self) -> tuple[Snapshot, Optional[Reading]]:
        """A look at the store, after merging what writers that seemed dead have finished after all.

        The caller closes the reading. Raises like survey() and Committer.commit(), and Interrupted.
        """
        snapshot, reading = survey(self.store, self._clock, self._log)
        try:
            merged, self.unmerged, self._unread = recover_torn(self._committer, snapshot.torn)
            if merged:
                _close(reading)
                reading = None  # should the next look fail, its number may be another file's by then
                known = snapshot.torn
                snapshot, reading = survey(self.store, self._clock, self._log)
                self.unmerged += [name for name in snapshot.torn if name not in known]
            self._clock.check()
        except BaseException:
            _close(reading)
            raise
        return snapshot, reading

    def waiting_guids(self) -> set[str]:
        """What old files and texts kept aside tell of while they are still to be merged: those blobs are no orphans.

        Raises StoreError, also where one of them could not be read.
        """
        if self._unread is not None:
            raise self._unread
        guids: set[str] = set()
        for name in (*previous_names(MOST_PREVIOUS + 1), *self.unmerged):
            try:
                guids |= told_by(self.store, name).guids
            except StoreError as error:
                if error.errno != ENOENT:
                    raise
        return guids

    def settled(self) -> tuple[Snapshot, Optional[Reading]]:
        """A look, after making sure of what earlier recoveries and late writes have put back. Otherwise like look()."""
        self._committer.close()  # an own draft is no leftover
        snapshot, reading = self.look()
        if snapshot.leftovers:
            _close(reading)
            recover(self._committer)
            snapshot, reading = self.look()
        return snapshot, reading

    def prepare(self, reading: Reading, blob_name: Optional[str] = None) -> None:
        """Make sure, before the first deletion, that entries can be removed. Raises like Committer.prepare()."""
        self._committer.prepare(reading, blob_name)
        self._known = parse(reading.data).fingerprint()
        self._size_bytes = len(reading.data)

    def remove_entries(self, deleted: Collection[str], swept: Collection[str], tell: Tell) -> None:
        """Remove the entries of deleted blobs, and dangling ones. Raises like commit(), and StoreGone.

        `tell` is called once they are gone, also when something fails after that, with the dangling ones that went.
        """
        self._remove_entries(
            deleted, swept, tell, COMMIT_PATIENCE_SECS + self._size_bytes * COMMIT_PATIENCE_SECS_PER_BYTE
        )

    def _remove_entries(
        self, deleted: Collection[str], swept: Collection[str], tell: Tell, patience_secs: float
    ) -> None:
        removal = Removal(self.store, self._clock, deleted, swept)
        try:
            with self._clock.doing("removing entries from metadata.json"):
                self._known = self._committer.commit(removal, self._known, patience_secs) or self._known
        except StorageManagerError as error:
            if error.committed:
                tell(removal.gone)
            raise
        self._require_store()
        tell(removal.gone)

    def try_remove_entries(
        self,
        deleted: Collection[str],
        swept: Collection[str],
        tell: Tell,
        put_off: Collection[int] = DISK_FULL,
        patience_secs: float = COMMIT_PATIENCE_SECS,
    ) -> None:
        """Like remove_entries(), where it can be put off.

        A client that is busy or stuck, or an errno of `put_off`, such as a full disk, only means that the next commit
        has more to do. A large store gets no more time than a small one: deleting on is worth more than waiting.
        """
        try:
            self._remove_entries(deleted, swept, tell, patience_secs)
        except (CommitContended, MetadataCorrupt, StoreError) as error:
            if isinstance(error, StoreError) and (error.committed or error.errno not in put_off):
                raise
            error.remedy = ""
            is_disk = isinstance(error, StoreError)
            report_deferred(error, "trying again later", len(deleted) + len(swept), self.store.path, self._log, is_disk)

    def add_entries(self, text: bytes) -> bool:
        """Add those entries of a metadata.json that are lacking here. Like recovery.add_entries()."""
        return add_entries(self._committer, parse(text))

    def create_metadata(self, blob_name: str, mode: int) -> None:
        """Like Committer.create()."""
        self._committer.create(blob_name, mode)

    def _require_store(self) -> None:
        """A client never removes metadata.json, and a commit replaces it in one step. Raises StoreGone, StoreError."""
        if self._known is not None and self.store.status(METADATA_NAME) is None:
            raise StoreGone(f"{self.store.file(METADATA_NAME)} {_DISAPPEARED}")
        with failing_as("examine", self.store.path):
            try:
                is_there = os.path.samestat(os.stat(self.store.path), os.fstat(self.store.dir_fd))
            except FileNotFoundError:
                is_there = False
        if not is_there:
            raise StoreGone(f"the storage directory {self.store.path} {_DISAPPEARED}")


@contextmanager
def locked_store(
    storage_dir: str, command: str, lock_timeout_secs: float, lock_stale_secs: float, clock: Clock, log: EventLog
) -> Iterator[LockedStore]:
    """Lock a store, recover it, and let go at the end. A stop signal inside is remembered, and raised at the end.

    Raises StoreMissing, LockBusy, LockUnavailable, StoreError, Interrupted, and like recover(). After a signal,
    Interrupted stands for a torn or busy metadata.json, too: there was no time to tell whether it is damaged.
    """
    with clock.deferred():
        with open_store(storage_dir) as store:
            with acquire_lock(store, log, clock, command, lock_timeout_secs, lock_stale_secs) as lock:
                committer = Committer(store, clock, log)
                try:
                    with clock.doing("recovering what an earlier run left"):
                        recover(committer)
                    clock.check()
                    yield LockedStore(store, lock, committer, clock, log)
                except (MetadataCorrupt, CommitContended):
                    clock.check()
                    raise
                finally:
                    committer.close()
        clock.check()


def report_deferred(
    error: StorageManagerError, what_then: str, entry_count: int, storage_dir: str, log: EventLog, is_warning: bool
) -> None:
    """Entries wait for a commit that could not be had. They harm nobody; that there is no room is a warning."""
    stay = "stays" if entry_count == 1 else "stay"
    room = {}
    if isinstance(error, NoRoom):
        room = {"free_bytes": error.free_bytes, "needed_bytes": error.needed_bytes}
    emit = log.warning if is_warning or room else log.info
    emit(
        "storage_manager.commit_deferred",
        f"{error}; {counted(entry_count, 'entry')} without blobs {stay}; {what_then}",
        entry_count=entry_count,
        storage_dir=storage_dir,
        **error.fields,
        **room,
    )


def _close(reading: Optional[Reading]) -> None:
    if reading is not None:
        reading.close()

"""What is around every run that changes a store: the lock, recovery before anything else, one report of failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog
from storage_manager.store.commit import Committer
from storage_manager.store.directory import Store, open_store
from storage_manager.store.lock import PruneLock, acquire_lock
from storage_manager.store.reading import Reading
from storage_manager.store.recovery import recover, recover_torn
from storage_manager.store.snapshot import Snapshot
from storage_manager.store.survey import survey


class Transaction:
    """A store under the prune lock, with nothing left over from a run that died."""

    def __init__(self, store: Store, lock: PruneLock, committer: Committer, clock: Clock, log: EventLog) -> None:
        self.store = store
        self.lock = lock
        self.committer = committer
        self._clock = clock
        self._log = log

    def look(self) -> tuple[Snapshot, Optional[Reading]]:
        """A look at the store, after merging what writers that seemed dead have finished after all.

        The caller closes the reading. Raises like survey() and Committer.commit(), and Interrupted.
        """
        snapshot, reading = survey(self.store, self._clock, self._log)
        try:
            if snapshot.torn and recover_torn(self.committer, snapshot.torn):
                _close(reading)
                snapshot, reading = survey(self.store, self._clock, self._log)
            self._clock.check()
        except BaseException:
            _close(reading)
            raise
        return snapshot, reading

    def settled(self) -> tuple[Snapshot, Optional[Reading]]:
        """A look, after making sure of what earlier recoveries and late writes have put back. Otherwise like look()."""
        snapshot, reading = self.look()
        if snapshot.leftovers:
            _close(reading)
            recover(self.committer)
            snapshot, reading = self.look()
        return snapshot, reading


@contextmanager
def transaction(
    storage_dir: str, command: str, lock_timeout_secs: float, lock_stale_secs: float, clock: Clock, log: EventLog
) -> Iterator[Transaction]:
    """Lock a store, recover it, and let go at the end. A stop signal inside is remembered, and raised at the end.

    Raises StoreMissing, LockBusy, LockUnavailable, StoreError, Interrupted, and like recover().
    """
    with clock.deferred():
        with open_store(storage_dir) as store:
            with acquire_lock(store, log, clock, command, lock_timeout_secs, lock_stale_secs) as lock:
                committer = Committer(store, clock, log)
                try:
                    recover(committer)
                    clock.check()
                    yield Transaction(store, lock, committer, clock, log)
                finally:
                    committer.close()
        clock.check()


def _close(reading: Optional[Reading]) -> None:
    if reading is not None:
        reading.close()

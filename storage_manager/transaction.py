"""What is around every run that changes a store: the lock, recovery before anything else, one report of failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from storage_manager.clock import Clock
from storage_manager.commit import Committer
from storage_manager.errors import LockBusy, StorageManagerError, StoreMissing
from storage_manager.lock import PruneLock, acquire_lock
from storage_manager.logs import EventLog
from storage_manager.metadata import Reading
from storage_manager.model import Snapshot
from storage_manager.store import Store, open_store
from storage_manager.survey import Findings, survey


class Progress:
    """What a run has seen and done so far: it must be known whatever ends the run."""

    def __init__(self) -> None:
        self.findings: Optional[Findings] = None
        self.uncommitted: set[str] = set()
        self.deleted_count = 0
        self.freed_bytes = 0
        self.gone_count = 0
        self.gone_bytes = 0
        self.failed: set[str] = set()
        self.swept_count = 0


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
            if snapshot.torn and self.committer.recover_torn(snapshot.torn):
                _close(reading)
                snapshot, reading = survey(self.store, self._clock, self._log)
            self._clock.check()
        except BaseException:
            _close(reading)
            raise
        return snapshot, reading


@contextmanager
def transaction(
    storage_dir: str, command: str, lock_timeout_secs: float, lock_stale_secs: float, clock: Clock, log: EventLog
) -> Iterator[Transaction]:
    """Lock a store, recover it, and let go at the end. A stop signal inside is remembered, and raised at the end.

    Raises StoreMissing, LockBusy, LockUnavailable, StoreError, Interrupted, and like Committer.recover().
    """
    with clock.deferred():
        with open_store(storage_dir) as store:
            with acquire_lock(store, log, clock, command, lock_timeout_secs, lock_stale_secs) as lock:
                committer = Committer(store, clock, log)
                try:
                    committer.recover()
                    clock.check()
                    yield Transaction(store, lock, committer, clock, log)
                finally:
                    committer.close()
        clock.check()


@contextmanager
def reporting(kind: str, storage_dir: str, progress: Progress, log: EventLog) -> Iterator[None]:
    """Tell of a run's failure in the one event that fits it; the error goes on, marked as reported."""
    try:
        yield
    except LockBusy as error:
        log.warning(error.event, str(error), storage_dir=storage_dir, **error.fields)
        error.reported = True
        raise
    except StoreMissing:
        raise  # for a command an error, for the loop a warning
    except StorageManagerError as error:
        special = error.event != StorageManagerError.event
        log.error(
            error.event if special else f"storage_manager.{kind}.failed",
            str(error),
            storage_dir=storage_dir,
            deleted_count=progress.deleted_count,
            freed_bytes=progress.freed_bytes,
            exit_code=error.exit_code,
            **error.fields,
        )
        error.reported = True
        raise


def _close(reading: Optional[Reading]) -> None:
    if reading is not None:
        reading.close()

"""A run at work on a store: locked, told of in the journal, and reported where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog
from storage_manager.jobs.journal import ADOPTED, DELETED, REPAIRED, HistoryFile, Journal
from storage_manager.jobs.progress import Progress, reporting
from storage_manager.store.locked import LockedStore, locked_store

# By the middle part of the event names: what the journal calls it, and says of its why; the task on the terminal.
_KINDS = {
    "prune": (DELETED, "", "preparing"),
    "purge": (DELETED, "", "preparing"),
    "adopt": (ADOPTED, "orphans given entries", "giving orphans entries"),
    "repair": (REPAIRED, "repair", "repairing"),
}


class Terms(NamedTuple):
    """Which store to lock, for which command, and how patiently."""

    storage_dir: str
    command: str
    lock_timeout_secs: float
    lock_stale_secs: float
    history: Optional[HistoryFile] = None
    """Where it is told what was done."""


class Work(NamedTuple):
    """What a run works with."""

    storage_dir: str
    locked: LockedStore
    journal: Journal
    clock: Clock
    log: EventLog
    progress: Progress


@contextmanager
def at_work(kind: str, terms: Terms, clock: Clock, log: EventLog, progress: Progress) -> Iterator[Work]:
    """Raises like locked_store(), and what is raised inside; a StorageManagerError after the event that says so."""
    what, why, task = _KINDS[kind]
    storage_dir, command, timeout_secs, stale_secs, history = terms
    with (
        reporting(kind, storage_dir, progress, log),
        clock.doing(task),
        locked_store(storage_dir, command, timeout_secs, stale_secs, clock, log) as locked,
        Journal(history, command, what, clock, log, why) as journal,
    ):
        yield Work(storage_dir, locked, journal, clock, log, progress)

"""What a run has seen and done so far, and the one report of its failure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Optional

from storage_manager.base.errors import EXIT_FAILED, Interrupted, LockBusy, StorageManagerError, StoreMissing
from storage_manager.base.log import EventLog
from storage_manager.base.quantity import counted
from storage_manager.base.times import utc_text
from storage_manager.jobs.journal import Journal
from storage_manager.jobs.memory import NOTHING, Memory, Shown
from storage_manager.store.snapshot import Session
from storage_manager.store.survey import Totals


class Progress:
    """What a run has seen and done so far: it must be known whatever ends the run."""

    def __init__(self, before: Memory = NOTHING, nothing: str = "nothing was deleted") -> None:
        """`before` is what a loop remembers; `nothing` is said as long as nothing was done."""
        self._nothing = nothing
        self.before = before
        self.shown = before.shown
        self.findings: Optional[Totals] = None
        self.uncommitted: set[str] = set()
        """Sessions whose blob is gone, and whose entry is still there."""
        self.deleted_count = 0
        self.freed_bytes = 0
        self.gone_count = 0
        self.gone_bytes = 0
        self.changed: set[str] = set()
        """Victims that were saved again in the meantime, and are none any more."""
        self.failed: set[str] = set()
        self.swept_count = 0
        self.deferred: set[str] = set()
        """Entries without blobs that wait for the next run, because the client left no moment for a commit."""
        self.deferrals = 0
        """Cycles in a row that had to leave some."""
        self.swept: set[str] = set()
        self.returned_count = 0
        """Entries among those swept that the cycle before had swept, too, and the client has brought back since."""
        self.removed_count = 0
        """Files of unfinished metadata."""
        self.adopted_count = 0
        self.adopting_count = 0
        """Orphans whose entries are being written: some of them may be there."""
        self.purged_count = 0
        """Orphans that a cycle has purged before its prune; `deleted_count` has sessions alone."""
        self.purged_bytes = 0
        self.adoptions_undone = 0
        """Cycles in a row whose adoption a client has undone."""
        self.noun = "session"
        self.sentence: Optional[str] = None
        """What came of it all, once that is known."""

    def defer(self, guids: Iterable[str]) -> None:
        self.deferred.update(guids)
        self.deferrals = self.before.deferrals + 1

    def undo_adoption(self) -> None:
        self.adoptions_undone = self.before.adoptions_undone + 1

    def sweep(self, guid: str) -> bool:
        """Count an entry. Whether it is news, or one that the client has brought back."""
        self.swept_count += 1
        self.swept.add(guid)
        is_news = guid not in self.before.swept
        self.returned_count += not is_news
        return is_news

    def show(self, moment: datetime, monotonic_secs: float) -> None:
        self.shown = Shown(moment, monotonic_secs)

    def remembered(self) -> Memory:
        """What the next cycle is to know of this one."""
        return self.before._replace(
            shown=self.shown,
            deferred=self.deferred,
            deferrals=self.deferrals,
            swept=self.swept,
            adoptions_undone=self.adoptions_undone,
        )

    @property
    def nothing_done(self) -> bool:
        removed = self.uncommitted or self.deleted_count or self.swept_count or self.removed_count or self.purged_count
        return not (removed or self.adopted_count or self.adopting_count)

    def done(self) -> str:
        """What was done, for the person who reads why the run has ended."""
        if self.sentence is not None:
            return self.sentence
        if self.nothing_done:
            return self._nothing
        parts = []
        if self.adopted_count:
            parts.append(f"{_were(self.adopted_count, 'orphan')} adopted")
        if self.adopting_count:
            parts.append(f"up to {_were(self.adopting_count, 'orphan')} adopted")
        if self.purged_count:
            parts.append(f"{_were(self.purged_count, 'orphan')} purged")
        if self.deleted_count or self.uncommitted:
            parts.append(f"{_were(self.deleted_count, self.noun)} deleted{self._entries_left()}")
        if self.swept_count:
            parts.append(f"{_were(self.swept_count, 'dangling entry')} removed")
        if self.removed_count:
            parts.append(f"{_were(self.removed_count, 'file of unfinished metadata')} removed")
        return "; ".join(parts)

    def _entries_left(self) -> str:
        left = len(self.uncommitted)
        if not left:
            return ""
        whose = counted(left, "entry")
        if left == self.deleted_count:
            whose = "its entry" if left == 1 else "their entries"
        stays, it = ("stays", "it") if left == 1 else ("stay", "them")
        return f"; {whose} {stays} until a later run removes {it}"


def _were(count: int, noun: str) -> str:
    return f"{counted(count, noun)} {'was' if count == 1 else 'were'}"


@contextmanager
def reporting(kind: str, storage_dir: str, progress: Progress, log: EventLog) -> Iterator[None]:
    """Tell of a run's failure, and of what it had done, in the one event that fits; the error goes on, as reported.

    No layer below says what was done: none of them knows.
    """
    try:
        yield
    except LockBusy as error:
        log.warning(error.event, str(error), storage_dir=storage_dir, **error.fields)
        error.reported = True
        raise
    except StoreMissing:
        raise  # for a command an error, for the loop a warning
    except StorageManagerError as error:
        error.add(progress.done())
        if not progress.nothing_done:
            error.remedy = ""  # it is for a store that is as it was: a backup would bring back what was deleted
        special = error.event != StorageManagerError.event
        facts = _facts(storage_dir, progress, error.exit_code)
        log.error(error.event if special else f"storage_manager.{kind}.failed", str(error), **facts, **error.fields)
        error.reported = True
        raise
    except Interrupted as interrupted:
        interrupted.add(progress.done())
        raise
    except Exception:  # no memory, or a fault of ours: who catches it says so, but cannot know what was done
        if not progress.nothing_done:
            facts = _facts(storage_dir, progress, EXIT_FAILED)
            log.error(f"storage_manager.{kind}.failed", progress.done(), **facts)
        raise


@contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """Say what had been done where a signal or an error ends what is around a run: a look, the question, the result."""
    try:
        yield
    except StorageManagerError as error:
        if not (progress.nothing_done or error.reported):
            error.add(progress.done())
        raise
    except Interrupted as interrupted:
        interrupted.add(progress.done())
        raise


def _facts(storage_dir: str, progress: Progress, exit_code: int) -> dict[str, object]:
    return {
        "storage_dir": storage_dir,
        "deleted_count": progress.deleted_count,
        "freed_bytes": progress.freed_bytes,
        "uncommitted_count": len(progress.uncommitted),
        "exit_code": exit_code,
    }


def report_swept(sweeper: str, swept: Iterable[Session], progress: Progress, journal: Journal, log: EventLog) -> None:
    """One event for each dangling entry that a commit has removed, unless the cycle before had removed it, too; and a
    word in the journal.

    The run that deleted its blob may have been killed before it said so.
    """
    news = [session for session in swept if progress.sweep(session.guid)]
    journal.swept([session.guid for session in news])
    for session in news:
        log.info(
            f"storage_manager.{sweeper}.swept",
            f"removed the dangling entry of {session.blob_name}",
            guid=session.guid,
            created_at=utc_text(session.created_at),
            group=session.group,
        )

"""What a run has seen and done so far, and the one report of its failure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

from storage_manager.base.errors import EXIT_FAILED, Interrupted, LockBusy, StorageManagerError, StoreMissing
from storage_manager.base.log import EventLog
from storage_manager.base.quantity import counted
from storage_manager.base.times import utc_text
from storage_manager.jobs.journal import Journal
from storage_manager.jobs.memory import NOTHING, Memory
from storage_manager.jobs.plan import Counts
from storage_manager.store.snapshot import Session
from storage_manager.store.survey import Totals


class Progress:
    """What a run has seen and done so far: it must be known whatever ends the run."""

    def __init__(self, before: Memory = NOTHING, nothing: str = "nothing was deleted") -> None:
        """`before` is what a loop remembers; `nothing` is said as long as nothing was done."""
        self.before = before
        self.memory = Memory(before.store, before.limit_from_file, before.shown)
        """What the next cycle is to know of this one."""
        self.counts = Counts()
        self.purged = Counts()
        """Of the orphans that a cycle has purged before its prune."""
        self.findings: Optional[Totals] = None
        self.uncommitted: set[str] = set()
        """Sessions whose blob is gone, and whose entry is still there."""
        self.adopted_count = 0
        self.adopting_count = 0
        """Orphans whose entries are being written: some of them may be there."""
        self.noun = "session"
        self.sentence = ""
        """What came of it all, once that is known."""
        self._nothing = nothing

    def remember(self, **known: Any) -> None:
        """By the names of Memory."""
        self.memory = self.memory._replace(**known)

    def defer(self, guids: Collection[str]) -> None:
        self.counts.deferred_count = len(guids)
        self.remember(deferred=frozenset(guids), deferrals=self.before.deferrals + 1)

    def undo_adoption(self) -> None:
        self.remember(adoptions_undone=self.before.adoptions_undone + 1)

    def sweep(self, sessions: Iterable[Session]) -> list[Session]:
        """Count entries. Returns those that are news: not what the client has brought back."""
        guids = {session.guid: session for session in sessions}
        news = [session for guid, session in guids.items() if guid not in self.before.swept]
        self.counts.swept_count += len(guids)
        self.counts.returned_count += len(guids) - len(news)
        self.remember(swept=self.memory.swept | guids.keys())
        return news

    @property
    def nothing_done(self) -> bool:
        counts = self.counts
        removed = self.uncommitted or counts.deleted_count or counts.swept_count or counts.removed_count
        return not (removed or self.purged.deleted_count or self.adopted_count or self.adopting_count)

    def done(self) -> str:
        """What was done, for the person who reads why the run has ended."""
        if self.sentence:
            return self.sentence
        if self.nothing_done:
            return self._nothing
        counts = self.counts
        deleted = f"{_were(counts.deleted_count, self.noun)} deleted{self._entries_left()}"
        parts = [
            (self.adopted_count, f"{_were(self.adopted_count, 'orphan')} adopted"),
            (self.adopting_count, f"up to {_were(self.adopting_count, 'orphan')} adopted"),
            (self.purged.deleted_count, f"{_were(self.purged.deleted_count, 'orphan')} purged"),
            (counts.deleted_count + len(self.uncommitted), deleted),
            (counts.swept_count, f"{_were(counts.swept_count, 'dangling entry')} removed"),
            (counts.removed_count, f"{_were(counts.removed_count, 'file of unfinished metadata')} removed"),
        ]
        return "; ".join(text for count, text in parts if count)

    def _entries_left(self) -> str:
        left = len(self.uncommitted)
        if not left:
            return ""
        whose = counted(left, "entry")
        if left == self.counts.deleted_count:
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
        "deleted_count": progress.counts.deleted_count,
        "freed_bytes": progress.counts.freed_bytes,
        "uncommitted_count": len(progress.uncommitted),
        "exit_code": exit_code,
    }


def report_swept(sweeper: str, swept: Iterable[Session], progress: Progress, journal: Journal, log: EventLog) -> None:
    """One event for each dangling entry that a commit has removed, unless the cycle before had removed it, too; and a
    word in the journal.

    The run that deleted its blob may have been killed before it said so.
    """
    news = progress.sweep(swept)
    journal.swept([session.guid for session in news])
    for session in news:
        log.info(
            f"storage_manager.{sweeper}.swept",
            f"removed the dangling entry of {session.blob_name}",
            guid=session.guid,
            created_at=utc_text(session.created_at),
            group=session.group,
        )

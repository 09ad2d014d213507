"""What a cycle does with orphans before it prunes: it keeps them, adopts them, or purges those of an age."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    EXIT_OK,
    ClockDoubtful,
    LockBusy,
    MetadataCorrupt,
    StorageManagerError,
    StoreMissing,
)
from storage_manager.base.log import EventLog
from storage_manager.base.quantity import counted, size
from storage_manager.config import Settings
from storage_manager.jobs.plan import Plan
from storage_manager.jobs.policy import first_of, plan_orphan_purge
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.prune import DEFERRALS_TO_WARN_OF, Job, dry_run, run
from storage_manager.jobs.repair import Terms, adopt, foresee
from storage_manager.jobs.store_time import StoreTime
from storage_manager.loop.hold import require_entries, require_settings
from storage_manager.store.snapshot import Session, Snapshot

# A cycle takes the oldest so many, some seconds of work, and the next one goes on: the sessions wait behind them.
MOST = 10_000


class Tended(NamedTuple):
    """What came of the orphans of a cycle."""

    sentence: str = ""
    exit_code: int = EXIT_OK
    lacks_evidence: bool = False
    later_bytes: int = 0
    """Of the orphans that the next cycle takes: no session has to make room for them meanwhile."""
    foreseen: Sequence[Session] = ()
    """Those that a dry run would delete or, with a group, make sessions of."""

    def after(self, snapshot: Snapshot) -> Snapshot:
        """The store as it would be after what was foreseen."""
        if not self.foreseen:
            return snapshot
        names = {orphan.blob_name for orphan in self.foreseen}
        adopted = [orphan for orphan in self.foreseen if orphan.group is not None]
        return snapshot._replace(
            sessions=sorted([*snapshot.sessions, *adopted]) if adopted else snapshot.sessions,
            anomalies=[anomaly for anomaly in snapshot.anomalies if anomaly.name not in names],
        )


def tend_orphans(
    settings: Settings,
    job: Job,
    store_time: StoreTime,
    clock: Clock,
    log: EventLog,
    only_plan: bool,
    progress: Progress,
) -> Tended:
    """Do what the setting asks for, as a run of its own before `job`, the prune of the cycle.

    What goes wrong is told in an event and in what is returned. Raised is only what the prune must not follow, or
    would fail from as well: missing evidence, a busy lock, an unreadable metadata.json; and Interrupted.
    """
    if settings.held_by is not None and settings.held_by.remedy:
        return Tended()  # the prune is held for it
    try:
        if settings.orphans.group is not None:
            return _adopt(settings.orphans.group, job, clock, log, only_plan, progress)
        if settings.orphans.age_days is not None and settings.max_storage_bytes is not None:
            return _purge(settings, settings.orphans.age_days, job, store_time, clock, log, only_plan, progress)
    except StorageManagerError as error:
        lacks_evidence = error.lacks_evidence and not isinstance(error, ClockDoubtful)
        if lacks_evidence or isinstance(error, (LockBusy, MetadataCorrupt, StoreMissing)):
            raise
        if not error.reported:
            log.error(error.event, str(error), storage_dir=settings.storage_dir, **error.fields)
        return Tended(f"orphans: {error}", error.exit_code, error.lacks_evidence)
    return Tended()


def _adopt(group: str, job: Job, clock: Clock, log: EventLog, only_plan: bool, progress: Progress) -> Tended:
    terms = Terms(job.storage_dir, job.command, job.lock_timeout_secs, job.lock_stale_secs)
    if only_plan:
        adoption = foresee(terms, group, clock, log, progress, MOST)
    else:
        adoption = adopt(terms, group, clock, log, job.history, progress, MOST)
    done = _sentence("adopt", "adopted", only_plan, len(adoption.adopted), adoption.adopted_bytes)
    later_bytes = sum(orphan.size_bytes for orphan in adoption.later)
    if adoption.undone_count:
        progress.undo_adoption()
        lasts = progress.adoptions_undone >= DEFERRALS_TO_WARN_OF
        emit = log.warning if lasts else log.info
        emit(
            "storage_manager.adopt.deferred",
            f"the service, at work, has undone the adoption of {counted(adoption.undone_count, 'orphan')} again and "
            f"again; the next cycle tries once more",
            orphan_count=adoption.undone_count,
            group=group,
            storage_dir=job.storage_dir,
        )
        if lasts:  # the limit must not wait for ever
            later_bytes = 0
    foreseen = [orphan._replace(group=group) for orphan in adoption.adopted] if only_plan else ()
    return Tended(done, later_bytes=later_bytes, foreseen=foreseen)


def _purge(
    settings: Settings,
    age_days: float,
    job: Job,
    store_time: StoreTime,
    clock: Clock,
    log: EventLog,
    only_plan: bool,
    progress: Progress,
) -> Tended:
    whole: Optional[Plan] = None

    def planner(snapshot: Snapshot, now: datetime) -> Plan:
        nonlocal whole
        whole = plan_orphan_purge(snapshot, age_days, now)
        require_settings(settings, whole)
        require_entries(settings, whole, snapshot)
        if_right = f"run `purge --orphans --age-days {age_days:g} --yes`"
        store_time.require_clock(whole, age_days, snapshot, job.storage_dir, now, if_right)
        return first_of(whole, MOST)

    purge = job._replace(
        kind="purge",
        planner=planner,
        limit_bytes=None,
        target_bytes=None,
        let_through=f"To let it through, run `purge --orphans --age-days {age_days:g}`",
    )
    step = Progress()
    try:
        outcome = (dry_run if only_plan else run)(purge, clock, log, step)
    finally:
        progress.purged_count, progress.purged_bytes = step.deleted_count, step.freed_bytes
        progress.findings = None if step.gone_count else step.findings
    done = _sentence("purge", "purged", only_plan, outcome.deleted_count, outcome.freed_bytes)
    if outcome.failed:
        done += f"; {counted(len(outcome.failed), 'orphan')} could not be deleted"
    later_bytes = 0 if whole is None else outcome.plan.planned_bytes - whole.planned_bytes
    foreseen = outcome.plan.victims if only_plan else ()
    return Tended(done, outcome.exit_code, later_bytes=later_bytes, foreseen=foreseen)


def _sentence(verb: str, past: str, only_plan: bool, count: int, size_bytes: int) -> str:
    """Nothing where nothing was done."""
    return f"{f'would {verb}' if only_plan else past} {counted(count, 'orphan')}, {size(size_bytes)}" if count else ""

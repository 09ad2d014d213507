"""What a cycle does with orphans before it prunes: it keeps them, adopts them, or purges those of an age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from storage_manager.base.errors import EXIT_OK, StorageManagerError
from storage_manager.base.quantity import counted, size
from storage_manager.jobs.memory import Memory
from storage_manager.jobs.policy import Limits, first_of, plan_orphan_purge
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.prune import DEFERRALS_TO_WARN_OF, Job, dry_run, run
from storage_manager.jobs.repair import adopt, foresee
from storage_manager.loop.cycle import Turn
from storage_manager.loop.hold import orphan_mandate
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

    def followed_by(self, prune: Job) -> Job:
        """The prune after it."""
        plan = prune.planner
        return prune._replace(
            planner=lambda snapshot, limits, now: plan(self.after(snapshot), limits, now),
            limits=prune.limits._replace(later_bytes=self.later_bytes),
        )

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


def tend_orphans(turn: Turn, job: Job) -> Tended:
    """Do what the setting asks for, as a run of its own before `job`, the prune of the cycle.

    What goes wrong is told in an event and in what is returned. Raised is only what the prune must not follow, or
    would fail from as well: missing evidence, a busy lock, an unreadable metadata.json; and Interrupted.
    """
    settings, log = turn.settings, turn.log
    if not job.mandate.has_rule:
        return Tended()  # the prune is held for it
    try:
        if settings.orphans.group is not None:
            return _adopt(settings.orphans.group, job, turn)
        if settings.orphans.age_days is not None and settings.max_storage_bytes is not None:
            return _purge(settings.orphans.age_days, job, turn)
    except StorageManagerError as error:
        if error.ends_cycle:
            raise
        if not error.reported:
            log.error(error.event, str(error), storage_dir=settings.storage_dir, **error.fields)
        return Tended(f"orphans: {error}", error.exit_code, error.lacks_evidence)
    return Tended()


def _adopt(group: str, job: Job, turn: Turn) -> Tended:
    clock, log, progress = turn.clock, turn.log, turn.progress
    if turn.only_plan:
        adoption = foresee(job.terms, group, clock, log, progress, MOST)
    else:
        adoption = adopt(job.terms, group, clock, log, progress, MOST)
    done = _sentence("adopt", "adopted", turn.only_plan, len(adoption.adopted), adoption.adopted_bytes)
    later_bytes = sum(orphan.size_bytes for orphan in adoption.later)
    if adoption.undone_count:
        progress.undo_adoption()
        lasts = progress.memory.adoptions_undone >= DEFERRALS_TO_WARN_OF
        emit = log.warning if lasts else log.info
        emit(
            "storage_manager.adopt.deferred",
            f"the service, at work, has undone the adoption of {counted(adoption.undone_count, 'orphan')} again and "
            f"again; the next cycle tries once more",
            orphan_count=adoption.undone_count,
            group=group,
            storage_dir=job.terms.storage_dir,
        )
        if lasts:  # the limit must not wait for ever
            later_bytes = 0
    foreseen = [orphan._replace(group=group) for orphan in adoption.adopted] if turn.only_plan else ()
    return Tended(done, later_bytes=later_bytes, foreseen=foreseen)


def _purge(age_days: float, job: Job, turn: Turn) -> Tended:
    purge = job._replace(
        kind="purge",
        planner=lambda snapshot, limits, now: first_of(plan_orphan_purge(snapshot, limits, now), MOST),
        limits=Limits(max_age_days=age_days),
        mandate=orphan_mandate(turn.settings, age_days),
        explain=True,
    )
    progress = turn.progress
    step = Progress(Memory(shown=progress.memory.shown))
    try:
        outcome = (dry_run if turn.only_plan else run)(purge, turn.clock, turn.log, step)
    finally:
        progress.remember(shown=step.memory.shown)
        progress.purged = step.counts
        progress.findings = None if step.counts.gone_count else step.findings
    counts = outcome.counts
    done = _sentence("purge", "purged", turn.only_plan, counts.deleted_count, counts.freed_bytes)
    if counts.failed:
        done += f"; {counted(len(counts.failed), 'orphan')} could not be deleted"
    foreseen = outcome.plan.victims if turn.only_plan else ()
    return Tended(done, outcome.exit_code, later_bytes=outcome.plan.later_bytes, foreseen=foreseen)


def _sentence(verb: str, past: str, only_plan: bool, count: int, size_bytes: int) -> str:
    """Nothing where nothing was done."""
    return f"{f'would {verb}' if only_plan else past} {counted(count, 'orphan')}, {size(size_bytes)}" if count else ""

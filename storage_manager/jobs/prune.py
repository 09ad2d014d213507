"""A prune or a purge: plan, delete, commit, summary, under the lock."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from datetime import datetime
from errno import ENOSPC, EROFS
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    EXIT_FAILED,
    EXIT_OK,
    CommitContended,
    LockLost,
    StoreError,
    describe_errno,
    errno_name,
)
from storage_manager.base.log import EventLog
from storage_manager.base.times import utc_text
from storage_manager.jobs.evidence import HANDFUL, Case, Held, Mandate, asks_history, why_not
from storage_manager.jobs.memory import Shown
from storage_manager.jobs.orphans import OrphanGuard
from storage_manager.jobs.plan import Counts, Deleted, Outcome, Plan, sentence, unmet
from storage_manager.jobs.policy import Limits
from storage_manager.jobs.progress import Progress, report_swept
from storage_manager.jobs.store_time import latest_moment
from storage_manager.jobs.work import Terms, Work, at_work
from storage_manager.store.directory import open_store
from storage_manager.store.inventory import mark
from storage_manager.store.locked import report_deferred
from storage_manager.store.snapshot import Session, Snapshot
from storage_manager.store.survey import report_findings, report_unknown_group, survey, take_snapshot

# A long prune commits this often, so that a crash leaves few dangling entries, and a client that lists the
# sessions does not see deleted ones for long.
COMMIT_EVERY_SECS = 5.0

# For the first commit of a run, which shows whether one is possible; contention is not what it looks for.
TRIAL_PATIENCE_SECS = 1.0

# A client that is busy for a while is nothing to be told of; one that is for that many cycles has a store that grows.
DEFERRALS_TO_WARN_OF = 3


class Job(NamedTuple):
    """What to do to which store."""

    kind: str
    """`prune` or `purge`: the middle part of the event names."""
    terms: Terms
    planner: Callable[[Snapshot, Limits, datetime], Plan]
    """Pure."""
    limits: Limits
    mandate: Mandate = Mandate()
    earlier: Callable[[], Deleted] = Deleted
    """What earlier runs have deleted: asked only where that matters."""
    explain: bool = False
    """Whether the outcome's plan shall still tell of the sessions that stay."""
    limit_text: Optional[str] = None
    """How the limit is shown, where there is more to say than its size."""
    is_watched: bool = True
    """Whether somebody waits for it; else a plan that deletes more than half of the sessions is a warning."""

    def plan(self, snapshot: Snapshot, now: datetime) -> Plan:
        return self.planner(snapshot, self.limits, now)


def preview(job: Job, clock: Clock, log: EventLog) -> Plan:
    """What would be done now, for a question before the work. Takes no lock. Raises like survey()."""
    with open_store(job.terms.storage_dir) as store:
        snapshot, reading = survey(store, clock, log)
        if reading is not None:
            reading.close()
    return job.plan(snapshot, clock.now())


def dry_run(job: Job, clock: Clock, log: EventLog, progress: Optional[Progress] = None) -> Outcome:
    """Plan as `run()` would, without the lock and without touching anything. Raises Held, and like take_snapshot()."""
    started = clock.monotonic()
    progress = progress or Progress()
    snapshot, progress.findings = take_snapshot(job.terms.storage_dir, clock, log, progress.findings)
    plan, facts = _decide(job, snapshot, clock, log, progress)
    counts = Counts(len(plan.victims), plan.freed_bytes, len(plan.swept))
    outcome = Outcome(plan, True, counts, plan.planned_bytes, EXIT_OK if plan.target_met else EXIT_FAILED)
    _report_end(job, outcome, facts, clock.monotonic() - started, log)
    return outcome


def _decide(
    job: Job, snapshot: Snapshot, clock: Clock, log: EventLog, progress: Progress
) -> tuple[Plan, dict[str, object]]:
    """The plan that nothing speaks against, and the facts that the summary repeats. Raises Held."""
    storage_dir, now = job.terms.storage_dir, clock.now()
    plan = job.plan(snapshot, now)
    waiting = set(progress.before.deferred).difference(session.guid for session in plan.swept)
    if waiting:
        left = [session for session in snapshot.dangling if session.guid in waiting]
        plan = plan._replace(swept=[*plan.swept, *left])
    latest: Optional[datetime] = None
    if job.mandate.if_clock_is_right:
        monotonic_secs = clock.monotonic()
        latest = latest_moment(snapshot, storage_dir, progress.memory.shown, now, monotonic_secs)
        if latest is not None:
            progress.remember(shown=Shown(latest, monotonic_secs))
    deleted = job.earlier() if asks_history(snapshot, job.limits.group) else Deleted()
    reason = why_not(Case(job.mandate, storage_dir, job.limits, snapshot, plan, now, latest, deleted))
    if reason is not None and not reason.plan_is_sound:
        raise Held(reason)
    facts = _report_check(job, snapshot, plan, log)
    if reason is not None:
        raise Held(reason)
    return plan, facts


def run(job: Job, clock: Clock, log: EventLog, progress: Optional[Progress] = None) -> Outcome:
    """Carry a job out. The outcome's exit code tells whether the target was met and everything could go.

    Raises a StorageManagerError when the job could not be done or finished, after the event that says so; and
    Interrupted, after committing what was done and releasing the lock. `progress` tells what was done even then.
    """
    with at_work(job.kind, job.terms, clock, log, progress or Progress()) as work:
        return _Run(job, work).carry_out()


class _Run:
    """One job on a locked store."""

    def __init__(self, job: Job, work: Work) -> None:
        self._job = job
        _, self._locked, self._journal, self._clock, self._log, self._progress = work
        self._guard: Optional[OrphanGuard] = None
        self._swept: dict[str, Session] = {}
        """Dangling entries that are still to be removed."""
        self._marks: Sequence[int] = ()
        """Of every file as it was when the plan was made, sorted."""

    def carry_out(self) -> Outcome:
        job, clock, progress, counts = self._job, self._clock, self._progress, self._progress.counts
        started = clock.monotonic()
        plan, facts, item_count = self._plan()
        progress.noun = plan.noun
        self._journal.why = plan.why
        self._swept = {session.guid: session for session in plan.swept}
        if plan.victims or plan.swept:
            takes_most = not (job.is_watched or plan.are_orphans) and 2 * len(plan.victims) > item_count
            emit = self._log.warning if takes_most else self._log.info
            emit(
                f"storage_manager.{job.kind}.started",
                f"deleting {quantity.counted(len(plan.victims), plan.noun)}, {quantity.size(plan.freed_bytes)}",
                victim_count=len(plan.victims),
                victim_bytes=plan.freed_bytes,
                swept_count=len(plan.swept),
                storage_dir=job.terms.storage_dir,
                group=job.limits.group,
            )
            with clock.doing(f"deleting {plan.noun}s", len(plan.victims)):
                self._delete_all(plan)
        # That all of many victims were saved again is no chance: inode numbers or times are not to be relied on here.
        is_unfit = len(plan.victims) == len(counts.changed) > HANDFUL
        exit_code = EXIT_OK if plan.target_met and not counts.failed and not is_unfit else EXIT_FAILED
        if clock.stop_signal is not None:
            exit_code = 128 + clock.stop_signal
        self._journal.exit_code = exit_code
        outcome = Outcome(plan, False, counts, plan.current_bytes - counts.gone_bytes, exit_code)
        _report_end(job, outcome, facts, clock.monotonic() - started, self._log)
        progress.sentence = sentence(outcome)
        return outcome

    def _plan(self) -> tuple[Plan, dict[str, object], int]:
        """What to do, once it is certain that it can be done; the facts that the summary repeats; how many sessions
        it is about."""
        job, clock = self._job, self._clock
        snapshot, reading = self._locked.look()
        with reading or nullcontext():
            told = self._progress.findings
            self._progress.findings = report_findings(snapshot, job.terms.storage_dir, self._log, told)
            plan, facts = _decide(job, snapshot, clock, self._log, self._progress)
            item_count = plan.item_count
            if plan.victims:
                self._marks = array("q", sorted(snapshot.marks))
            # Of a large store, what stays takes much memory, and is of no more use.
            del snapshot
            if not job.explain:
                plan = plan._replace(kept=())
            if plan.are_orphans:
                waiting = self._locked.waiting_guids()
                self._guard = OrphanGuard(self._locked.store, clock, reading, plan.victims, waiting)
            elif reading is not None and (plan.victims or plan.swept):
                self._locked.prepare(reading, plan.victims[0].blob_name if plan.victims else None)
        return plan, facts, item_count

    def _delete_all(self, plan: Plan) -> None:
        """Blobs first, then entries: a crash leaves dangling entries, which harm nobody, and a full disk gets room."""
        locked, clock, progress = self._locked, self._clock, self._progress
        lost: Optional[LockLost] = None
        if self._swept and plan.victims and not clock.stopping:
            # An earlier run may have deleted these and not been able to commit. If that has not passed, nothing more is
            # deleted. A full disk is another matter: deleting makes room; a quota is not certain to be the blobs', too.
            locked.try_remove_entries((), self._swept, self._entries_gone, (ENOSPC,), TRIAL_PATIENCE_SECS)
        committed_at = clock.monotonic()
        try:
            for session, (_, reason) in zip(self._journal.announced(plan.victims), plan.chosen()):
                if clock.stopping:
                    break
                clock.progress(1)
                if self._guard is not None and not self._guard.is_orphan(session):
                    continue
                self._delete(session, plan, reason)
                if clock.monotonic() - committed_at >= COMMIT_EVERY_SECS:
                    locked.lock.refresh()
                    self._commit_meanwhile()
                    committed_at = clock.monotonic()
            locked.lock.refresh()
        except LockLost as error:
            if not locked.lock.is_exclusive:
                raise  # the other run may be committing, too; the entries stay, dangling
            lost = error
        except StoreError:
            # The file system has become read-only or worse; the entries of what is gone may still be removable.
            self._commit_meanwhile()
            raise
        swept = () if lost or clock.stopping else self._swept
        if progress.uncommitted or swept:
            try:
                locked.remove_entries(progress.uncommitted, swept, self._entries_gone)
            except CommitContended as error:
                progress.defer({*progress.uncommitted, *swept})
                lasts = progress.memory.deferrals >= DEFERRALS_TO_WARN_OF
                report_deferred(
                    error,
                    "the next run goes on",
                    progress.counts.deferred_count,
                    self._job.terms.storage_dir,
                    self._log,
                    lasts,
                )
        if lost is not None:
            raise lost

    def _commit_meanwhile(self) -> None:
        if self._progress.uncommitted:
            self._locked.try_remove_entries(self._progress.uncommitted, (), self._entries_gone)

    def _entries_gone(self, swept: Collection[str]) -> None:
        """The entries of what was deleted are gone by now, and these dangling ones."""
        self._progress.uncommitted.clear()
        gone = [self._swept.pop(guid) for guid in list(self._swept) if guid in swept]
        report_swept(self._job.kind, gone, self._progress, self._journal, self._log)

    def _delete(self, session: Session, plan: Plan, reason: str) -> None:
        job, store, progress, counts = self._job, self._locked.store, self._progress, self._progress.counts
        name = session.blob_name
        try:
            if self._has_changed(name):
                self._report_changed(session)
                return
            existed = store.unlink(name)
        except OSError as error:
            if error.errno == EROFS:
                raise StoreError("delete", store.file(name), error) from error
            counts.failed.add(name)
            self._log.error(
                f"storage_manager.{job.kind}.delete_failed",
                f"cannot delete {name}: {describe_errno(error)}; it stays"
                + ("" if plan.are_orphans else ", and so does its entry"),
                guid=session.guid,
                file=store.file(name),
                errno=errno_name(error.errno),
            )
            return
        if not plan.are_orphans:
            progress.uncommitted.add(session.guid)
        counts.gone_count += 1
        counts.gone_bytes += session.size_bytes
        if not existed:  # its owner deleted it meanwhile; only the entry is left to remove
            return
        self._journal.done(session)
        counts.deleted_count += 1
        counts.freed_bytes += session.size_bytes
        self._log.info(
            f"storage_manager.{job.kind}.deleted",
            "deleted " + name,
            guid=session.guid,
            size_bytes=session.size_bytes,
            created_at=utc_text(session.created_at),
            group=session.group,
            reason=reason,
        )

    def _has_changed(self, name: str) -> bool:
        """Whether a name leads to another file than when the plan was made, or to one that was written to.

        Then a client has saved the session again, and nobody has chosen that one. Raises OSError.
        """
        try:
            found = mark(name, self._locked.store.stat(name))
        except FileNotFoundError:
            return False  # its owner has deleted it
        place = bisect_left(self._marks, found)
        return place == len(self._marks) or self._marks[place] != found

    def _report_changed(self, session: Session) -> None:
        job = self._job
        self._progress.counts.changed.add(session.blob_name)
        self._log.info(
            f"storage_manager.{job.kind}.changed",
            f"{session.blob_name} was saved again after the plan was made; it stays",
            guid=session.guid,
            file=self._locked.store.file(session.blob_name),
        )


def _report_check(job: Job, snapshot: Snapshot, plan: Plan, log: EventLog) -> dict[str, object]:
    """The events before anything happens; the facts that the summary repeats."""
    report_unknown_group(snapshot, job.limits.group, job.terms.storage_dir, log)
    scope = snapshot.scoped(job.limits.group)
    totals = scope.anomaly_totals()
    facts: dict[str, object] = {
        "current_bytes": plan.current_bytes,
        "current_mb": quantity.megabytes(plan.current_bytes),
        "target_mb": None if job.limits.target_bytes is None else quantity.megabytes(job.limits.target_bytes),
        "item_count": len(scope.sessions),
        "anomalies": sum(count for count, _ in totals.values()),
        "anomaly_mb": quantity.megabytes(scope.anomaly_bytes),
        "storage_dir": job.terms.storage_dir,
        "group": job.limits.group,
    }
    if job.limits.limit_bytes is None:
        return facts
    facts["limit_mb"] = quantity.megabytes(job.limits.limit_bytes)
    log.info(
        "storage_manager.prune.check",
        f"{quantity.size(plan.current_bytes)} of {job.limit_text or quantity.size(job.limits.limit_bytes)} in "
        f"{quantity.counted(len(scope.sessions), 'session')}",
        **facts,
    )
    if not scope.sessions and not totals:
        log.info("storage_manager.prune.empty_storage", f"no sessions in {job.terms.storage_dir}", **facts)
    if not plan.victims and plan.target_met:
        within = "within the limit, " if plan.current_bytes <= job.limits.limit_bytes else ""
        log.info("storage_manager.prune.noop", f"{within}nothing to do", **facts)
    return facts


def _report_end(job: Job, outcome: Outcome, facts: dict[str, object], secs: float, log: EventLog) -> None:
    plan, counts = outcome.plan, outcome.counts
    why = unmet(plan, outcome.final_bytes)
    if why:
        log.warning(
            "storage_manager.prune.target_unmet",
            why,
            final_bytes=outcome.final_bytes,
            target_bytes=plan.target_bytes,
            causes=plan.causes,
            storage_dir=job.terms.storage_dir,
            group=job.limits.group,
        )
    log.info(
        f"storage_manager.{job.kind}.summary",
        sentence(outcome),
        **facts,
        dry_run=outcome.dry_run,
        deleted_count=counts.deleted_count,
        freed_bytes=counts.freed_bytes,
        freed_mb=quantity.megabytes(counts.freed_bytes),
        swept_count=counts.swept_count,
        returned_count=counts.returned_count,
        failed_count=len(counts.failed),
        changed_count=len(counts.changed),
        deferred_count=counts.deferred_count,
        final_bytes=outcome.final_bytes,
        final_mb=quantity.megabytes(outcome.final_bytes),
        exit_code=outcome.exit_code,
        duration_ms=round(secs * 1000),
    )

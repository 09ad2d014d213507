"""The loop: a prune every interval, for ever. Nothing in the environment, the store or the clock ends it.

The one exception is asked for: `max_failures`, so that whoever started it can act.
"""

from __future__ import annotations

from datetime import datetime
from typing import Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    EXIT_FAILED,
    EXIT_OK,
    Interrupted,
    StorageManagerError,
    StoreGone,
    StoreMissing,
    signal_name,
)
from storage_manager.base.log import EventLog
from storage_manager.base.times import utc_text
from storage_manager.config import Load, Refresh, Settings, limit_text, report_fallbacks
from storage_manager.jobs.plan import Plan, sentence, unmet
from storage_manager.jobs.policy import PruneLimits, plan_nothing, plan_prune, plan_purge
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.prune import Job, dry_run, run
from storage_manager.jobs.store_time import StoreTime
from storage_manager.loop.cycle import Ending, sleep_secs, wake_up_at
from storage_manager.loop.history_file import earlier_deletions
from storage_manager.loop.hold import require_file, require_settings
from storage_manager.loop.memory import give_back
from storage_manager.loop.orphans import Tended, tend_orphans
from storage_manager.loop.own_files import writable_history_file
from storage_manager.loop.sighting import Sighting, sight, what_has_gone
from storage_manager.loop.status import LoopStatus
from storage_manager.store.snapshot import Snapshot


def run_loop(
    load: Load,
    clock: Clock,
    log: EventLog,
    once: bool,
    only_plan: bool,
    max_failures: Optional[int] = None,
    refresh: Refresh = lambda log: False,
) -> int:
    """Run cycles until SIGTERM or SIGINT, then return 0; with `once`, run one and return its exit code.

    After `max_failures` cycles in a row that ended with another exit code than 0, return 1. SIGHUP ends nothing.
    """
    with clock.deferred():
        settings, _ = load()
        limit_bytes, target_bytes = settings.max_storage_bytes, settings.target_storage_bytes
        status = LoopStatus(settings, clock, log, once, only_plan, max_failures)
        log.info(
            "housekeeper.started",
            f"{_purpose(settings)}, every {settings.interval_secs / 60:g} minutes",
            storage_dir=settings.storage_dir,
            storage_source=settings.storage_source,
            max_storage_mb=None if limit_bytes is None else quantity.megabytes(limit_bytes),
            limit_source=settings.limit_source,
            target_storage_mb=None if target_bytes is None else quantity.megabytes(target_bytes),
            max_sessions=settings.max_sessions,
            max_age_days=settings.max_age_days,
            min_age_mins=settings.min_age_mins,
            keep_last=settings.keep_last,
            max_delete=None if settings.max_delete is None else str(settings.max_delete),
            orphans=str(settings.orphans),
            interval_mins=settings.interval_secs / 60,
            lock_stale_seconds=settings.lock_stale_secs,
            environment=settings.environment,
            dry_run=only_plan,
        )
        status.started()
        clock.listener = status.progress
        try:
            return _turns(load, clock, log, status, once, only_plan, max_failures, refresh)
        finally:
            clock.listener = None
            status.ended()


def _turns(
    load: Load,
    clock: Clock,
    log: EventLog,
    status: LoopStatus,
    once: bool,
    only_plan: bool,
    max_failures: Optional[int],
    refresh: Refresh,
) -> int:
    progress: Optional[Progress] = None
    store_time = StoreTime(clock)
    while True:
        started = clock.monotonic()
        clock.wake_requested = False
        log.begin_run()
        refresh(log)
        settings, fallbacks = load()
        report_fallbacks(fallbacks + status.cycle_started(settings), log)
        progress = Progress(progress)
        ending = _cycle(settings, status.seen, store_time, clock, log, only_plan, progress)
        status.cycle_ended(settings, ending, progress, max(0.0, clock.monotonic() - started))
        if once:
            return ending.exit_code
        if max_failures is not None and status.failures >= max_failures and not ending.lacks_evidence:
            log.error(
                "housekeeper.giving_up",
                f"giving up after {quantity.counted(status.failures, 'failed cycle')} in a row, the last with exit "
                f"code {ending.exit_code}: {ending.sentence}",
                storage_dir=settings.storage_dir,
                failures=status.failures,
                exit_code=EXIT_FAILED,
            )
            return EXIT_FAILED
        give_back(progress.findings.session_count if progress.findings is not None else 0)
        _sleep(clock, log, status, sleep_secs(clock.monotonic() - started, settings.interval_secs), refresh)
        if clock.stop_signal is not None:
            log.info("housekeeper.stopping", f"stopping on {signal_name(clock.stop_signal)}", signal=clock.stop_signal)
            return EXIT_OK


def _cycle(
    settings: Settings,
    seen: Optional[Sighting],
    store_time: StoreTime,
    clock: Clock,
    log: EventLog,
    only_plan: bool,
    progress: Progress,
) -> Ending:
    """What is to be done with orphans, and one prune, whatever comes of it. Raises nothing."""
    log.info("housekeeper.cycle_start", f"looking after {settings.storage_dir}", storage_dir=settings.storage_dir)
    limit_bytes = settings.max_storage_bytes
    if limit_bytes is None:
        log.info(
            "housekeeper.deletion_off",
            f"{settings.limit_variable} is `off`: nothing is deleted, however much there is",
            variable=settings.limit_variable,
            storage_dir=settings.storage_dir,
        )
    tended = Tended()
    job = Job(
        kind="prune",
        command="run-loop",
        storage_dir=settings.storage_dir,
        planner=lambda snapshot, now: _plan(settings, store_time, tended, snapshot, now),
        group=None,
        limit_bytes=limit_bytes,
        target_bytes=settings.target_storage_bytes or limit_bytes,
        lock_timeout_secs=0.0,
        lock_stale_secs=settings.lock_stale_secs,
        limit_text=limit_text(limit_bytes, settings.limit_source),
        history=None if only_plan else writable_history_file(settings, log),
        earlier=lambda: earlier_deletions(settings, log),
        max_delete=settings.max_delete,
        let_through=f"To let it through once, run `run-loop --once` with {settings.prefix}_MAX_DELETE=off",
        is_watched=False,
    )
    try:
        _require_what_was_seen(settings, seen)
        at_start = sight(settings.storage_dir, 0)
        if at_start is not None and seen is not None and not seen.is_same_directory(at_start):
            log.info(
                "housekeeper.store_moved",
                f"{settings.storage_dir} is another directory than in the cycle before, with a store in it",
                storage_dir=settings.storage_dir,
            )
        tended = tend_orphans(settings, job, store_time, clock, log, only_plan, progress)
        outcome = (dry_run if only_plan else run)(job, clock, log, progress)
        if at_start is not None and progress.findings is not None:
            _require_what_was_seen(settings, at_start._replace(session_count=progress.findings.session_count))
    except StorageManagerError as error:
        if isinstance(error, StoreGone):
            progress.findings = None  # they are not about the store that was seen, which is to be remembered
        if not error.reported and not isinstance(error, StoreMissing):
            log.error(error.event, str(error), storage_dir=settings.storage_dir, **error.fields)
        exit_code, why, lacks_evidence = error.exit_code, str(error), error.lacks_evidence
    except Interrupted as interrupted:
        return Ending(EXIT_OK, str(interrupted), interrupted=True)
    except Exception as error:  # a fault of ours must not stop the housekeeping for ever
        why = f"the cycle failed: {type(error).__name__}: {error}"
        log.exception(
            "housekeeper.cycle_failed",
            f"{why}; the next one tries again",
            error,
            storage_dir=settings.storage_dir,
            exit_code=EXIT_FAILED,
        )
        return Ending(EXIT_FAILED, why)
    else:
        exit_code, lacks_evidence = outcome.exit_code or tended.exit_code, tended.lacks_evidence
        why = "; ".join(filter(None, (tended.sentence, sentence(outcome))))
        if not outcome.plan.target_met:
            why += f"; {unmet(outcome.plan, outcome.final_bytes)}"
    if exit_code == EXIT_OK:
        log.info("housekeeper.cycle_ok", why, storage_dir=settings.storage_dir, exit_code=exit_code)
    else:
        log.warning(
            "housekeeper.cycle_nonzero",
            f"the cycle ended with exit code {exit_code}: {why}",
            storage_dir=settings.storage_dir,
            exit_code=exit_code,
        )
    return Ending(exit_code, why, lacks_evidence=lacks_evidence)


def _require_what_was_seen(settings: Settings, seen: Optional[Sighting]) -> None:
    """Raises StoreGone."""
    gone = what_has_gone(settings.storage_dir, seen, settings.heartbeat_file)
    if gone is not None:
        raise StoreGone(gone)


def _plan(settings: Settings, store_time: StoreTime, tended: Tended, snapshot: Snapshot, now: datetime) -> Plan:
    """Raises Held, ClockDoubtful."""
    limit_bytes, age_days = settings.max_storage_bytes, settings.max_age_days
    require_file(settings)
    snapshot = tended.after(snapshot)
    if limit_bytes is None:
        return plan_nothing(snapshot)
    target_bytes = settings.target_storage_bytes or limit_bytes
    limits = PruneLimits(
        limit_bytes + tended.later_bytes,
        target_bytes + tended.later_bytes,
        min_age_mins=settings.min_age_mins,
        keep_last=settings.keep_last,
        max_sessions=settings.max_sessions,
        max_age_days=age_days,
    )
    plan = plan_prune(snapshot, limits, now)._replace(target_bytes=target_bytes)
    require_settings(settings, plan)
    if age_days is not None:
        aged, if_right = plan_purge(snapshot, age_days, None, now), f"run `purge --age-days {age_days:g} --yes`"
        if settings.keep_last or settings.min_age_mins:
            if_right += f", which keeps nothing for {settings.prefix}_KEEP_LAST or {settings.prefix}_MIN_AGE_MINS"
        store_time.require_clock(aged, age_days, snapshot, settings.storage_dir, now, if_right)
    return plan


def _purpose(settings: Settings) -> str:
    if settings.max_storage_bytes is None:
        return f"looking after {settings.storage_dir}; deletion is switched off"
    limits = [limit_text(settings.max_storage_bytes, settings.limit_source)]
    if settings.max_sessions is not None:
        limits.append(quantity.counted(settings.max_sessions, "session"))
    if settings.max_age_days is not None:
        limits.append(f"an age of {settings.max_age_days:g} days")
    return f"keeping {settings.storage_dir} below {' and '.join(limits)}"


def _sleep(clock: Clock, log: EventLog, status: LoopStatus, secs: float, refresh: Refresh) -> None:
    _answer_hangup(clock, log, refresh)
    if clock.stopping:
        return
    status.sleeping(secs)
    next_wake_up = utc_text(wake_up_at(clock.now(), secs).replace(microsecond=0))
    log.info(
        "housekeeper.sleep", f"sleeping until {next_wake_up}", sleep_seconds=round(secs, 1), next_wake_up=next_wake_up
    )
    # Counted, not measured against a deadline: a clock that goes back must not prolong the sleep without end.
    left, before = secs, clock.monotonic()
    while left > 0 and not clock.stopping and not clock.wake_requested:
        clock.sleep(min(left, status.nap_secs))
        status.progress()
        _answer_hangup(clock, log, refresh)
        now = clock.monotonic()
        left, before = left - max(0.0, now - before), now


def _answer_hangup(clock: Clock, log: EventLog, refresh: Refresh) -> None:
    """In the middle of a cycle the log file follows its name by itself, within a second."""
    if clock.hung_up:
        clock.hung_up = False
        log.reopen()
        log.info("housekeeper.log_reopened", "SIGHUP: the log file is opened anew, and the loop goes on")
        clock.wake_requested = refresh(log) or clock.wake_requested

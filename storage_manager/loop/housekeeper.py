"""The loop: a prune every interval, for ever. Nothing in the environment, the store or the clock ends it.

The one exception is asked for: `max_failures`, so that whoever started it can act.
"""

from __future__ import annotations

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
from storage_manager.jobs.evidence import Held, store_has_gone
from storage_manager.jobs.memory import Sighting
from storage_manager.jobs.plan import sentence, unmet
from storage_manager.jobs.policy import Limits, plan_nothing, plan_prune
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.prune import Job, dry_run, run
from storage_manager.jobs.work import Terms
from storage_manager.loop.cycle import Ending, Manner, Turn, sleep_secs, wake_up_at
from storage_manager.loop.heap import give_back
from storage_manager.loop.history_file import earlier_deletions
from storage_manager.loop.hold import prune_mandate
from storage_manager.loop.orphans import tend_orphans
from storage_manager.loop.own_files import writable_history_file
from storage_manager.loop.sighting import look_for, sight
from storage_manager.loop.status import LoopStatus


def run_loop(load: Load, clock: Clock, log: EventLog, manner: Manner, refresh: Refresh = lambda log: False) -> int:
    """Run cycles until SIGTERM or SIGINT, then return 0; with `once`, run one and return its exit code.

    After `max_failures` cycles in a row that ended with another exit code than 0, return 1. SIGHUP ends nothing.
    """
    with clock.deferred():
        settings, _ = load()
        limit_bytes, target_bytes = settings.max_storage_bytes, settings.target_storage_bytes
        status = LoopStatus(settings, clock, log, manner)
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
            dry_run=manner.only_plan,
        )
        status.started()
        clock.listener = status.progress
        try:
            return _turns(load, clock, log, status, manner, refresh)
        finally:
            clock.listener = None
            status.ended()


def _turns(load: Load, clock: Clock, log: EventLog, status: LoopStatus, manner: Manner, refresh: Refresh) -> int:
    once, only_plan, max_failures = manner
    while True:
        started = clock.monotonic()
        clock.wake_requested = False
        log.begin_run()
        refresh(log)
        settings, fallbacks = load()
        report_fallbacks(fallbacks + status.cycle_started(settings), log)
        progress = Progress(status.memory)
        ending = _cycle(Turn(settings, clock, log, progress, only_plan))
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


def _cycle(turn: Turn) -> Ending:
    """What is to be done with orphans, and one prune, whatever comes of it. Raises nothing."""
    settings, log = turn.settings, turn.log
    log.info("housekeeper.cycle_start", f"looking after {settings.storage_dir}", storage_dir=settings.storage_dir)
    if settings.max_storage_bytes is None:
        log.info(
            "housekeeper.deletion_off",
            f"{settings.limit_variable} is `off`: nothing is deleted, however much there is",
            variable=settings.limit_variable,
            storage_dir=settings.storage_dir,
        )
    try:
        ending = _work(turn)
    except StorageManagerError as error:
        if not error.reported and not isinstance(error, StoreMissing):
            log.error(error.event, str(error), storage_dir=settings.storage_dir, **error.fields)
        ending = Ending(error.exit_code, str(error), lacks_evidence=error.lacks_evidence)
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
    code, why = ending.exit_code, ending.sentence
    if code == EXIT_OK:
        log.info("housekeeper.cycle_ok", why, storage_dir=settings.storage_dir, exit_code=code)
    else:
        why = f"the cycle ended with exit code {code}: {why}"
        log.warning("housekeeper.cycle_nonzero", why, storage_dir=settings.storage_dir, exit_code=code)
    return ending


def _work(turn: Turn) -> Ending:
    """Raises a StorageManagerError, and Interrupted."""
    settings, progress, seen = turn.settings, turn.progress, turn.progress.before.store
    job = _job(turn)
    _require_store(turn, seen)
    at_start = sight(settings.storage_dir, 0)
    if at_start is not None and seen is not None and not seen.is_same_directory(at_start):
        turn.log.info(
            "housekeeper.store_moved",
            f"{settings.storage_dir} is another directory than in the cycle before, with a store in it",
            storage_dir=settings.storage_dir,
        )
    try:
        tended = tend_orphans(turn, job)
        outcome = (dry_run if turn.only_plan else run)(tended.followed_by(job), turn.clock, turn.log, progress)
    except StoreGone:
        progress.findings = None  # they are not about the store that was seen, which is to be remembered
        raise
    if at_start is not None and progress.findings is not None:
        _require_store(turn, at_start._replace(session_count=progress.findings.session_count))
    why = "; ".join(filter(None, (tended.sentence, sentence(outcome))))
    if not outcome.plan.target_met:
        why += f"; {unmet(outcome.plan, outcome.final_bytes)}"
    return Ending(outcome.exit_code or tended.exit_code, why, lacks_evidence=tended.lacks_evidence)


def _require_store(turn: Turn, seen: Optional[Sighting]) -> None:
    """Raises Held when a store has gone."""
    settings = turn.settings
    found = None if seen is None else look_for(seen, settings.storage_dir)
    gone = store_has_gone(settings.storage_dir, seen, found, settings.heartbeat_file)
    if gone is not None:
        turn.progress.findings = None  # as above
        raise Held(gone)


def _job(turn: Turn) -> Job:
    """The prune of a cycle."""
    settings, limit_bytes = turn.settings, turn.settings.max_storage_bytes
    history = None if turn.only_plan else writable_history_file(settings, turn.log)
    return Job(
        kind="prune",
        terms=Terms(settings.storage_dir, "run-loop", 0.0, settings.lock_stale_secs, history),
        planner=plan_nothing if limit_bytes is None else plan_prune,
        limits=Limits(
            limit_bytes,
            settings.target_storage_bytes or limit_bytes,
            min_age_mins=settings.min_age_mins,
            keep_last=settings.keep_last,
            max_sessions=settings.max_sessions,
            max_age_days=settings.max_age_days,
        ),
        mandate=prune_mandate(settings),
        earlier=lambda: earlier_deletions(settings, turn.log),
        limit_text=limit_text(limit_bytes, settings.limit_source),
        is_watched=False,
    )


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

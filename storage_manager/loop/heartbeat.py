"""The heartbeat: what the loop tells of itself, and the verdict whether that is healthy.

Pure: no files and no clock. Times are wall-clock, because another process compares them with its own. On the same boot
the monotonic clock says how long ago the heartbeat was written: a wall clock that is set must alarm nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.process import GONE, STOPPED, Process
from storage_manager.base.times import later, utc_text
from storage_manager.jobs.memory import Memory, Sighting

CYCLE: Final = "cycle"
SLEEPING: Final = "sleeping"
ENDED: Final = "ended"
State = Literal["cycle", "sleeping", "ended"]

# One cycle may fail and the next one make up for it; the grace is for a cycle that takes its time.
RECENT_INTERVALS = 2
GRACE = timedelta(minutes=5)

# The longest wait inside a cycle is a minute (a busy client); what stays silent for longer hangs.
LONGEST_SILENCE = timedelta(minutes=5)

# A sleep ends to the second; a starved machine gets this much.
OVERSLEPT = timedelta(minutes=1)

# Clocks of hosts that share a file differ by less; more means that the clock was set back.
AHEAD = timedelta(minutes=1)

# This many failed cycles in a row are no accident.
FAILURES = 3


class CycleResult(NamedTuple):
    """What came of one cycle."""

    ended_at: datetime
    exit_code: int
    sentence: str
    duration_secs: float
    usage_bytes: Optional[int]
    """None, as below, when the cycle could not look at the store."""
    limit_bytes: Optional[int]
    """None: deletion was switched off."""
    session_count: Optional[int]
    deleted_count: int
    freed_bytes: int
    anomalies: Mapping[str, int]
    """kind -> count, for the kinds that occur."""
    suggested_dirs: tuple[str, ...]
    """Where the store probably is instead."""
    limit_source: Optional[str] = None
    """As in Settings; None when an older version wrote the file."""
    lacks_evidence: Optional[bool] = None
    """Whether it stopped because evidence was missing, such as the store itself. None: an older version wrote this."""


class Heartbeat(NamedTuple):
    """The state of a loop at one moment. Times are naive UTC."""

    version: str
    process: Process
    storage_dir: str
    interval_secs: float
    once: bool
    """One cycle for a timer: nobody expects the process to live."""
    dry_run: bool
    max_failures: Optional[int]
    started_at: datetime
    state: State
    alive_at: datetime
    """The last sign of progress; while it sleeps, when it fell asleep."""
    cycle_started_at: Optional[datetime]
    next_wake_up: Optional[datetime]
    last_cycle: Optional[CycleResult]
    last_success_at: Optional[datetime]
    failures: int
    """Cycles in a row, up to the last one, that ended with another code than 0."""
    store: Optional[Sighting] = None
    """As in Memory."""
    boot: Optional[str] = None
    """As process.this_boot() has it; None, as below, when an older version wrote the file."""
    monotonic_secs: Optional[float] = None
    """`alive_at` by the monotonic clock of that boot."""
    limit_from_file: Optional[bool] = None
    """As in Memory."""

    @property
    def is_held(self) -> bool:
        """Whether the last cycle lacked evidence. Somebody must look: a restart helps nothing, and may forget why."""
        return self.last_cycle is not None and bool(self.last_cycle.lacks_evidence)

    @property
    def memory(self) -> Memory:
        """What of it outlives the process."""
        return Memory(store=self.store, limit_from_file=bool(self.limit_from_file))

    def with_memory(self, memory: Memory) -> Heartbeat:
        return self._replace(store=memory.store, limit_from_file=memory.limit_from_file)


# Clocks


def present(heartbeat: Heartbeat, now: datetime, boot: Optional[str], monotonic_secs: float) -> datetime:
    """The present by the wall clock that the heartbeat was written by, which may have been set since.

    On another boot, and where the boot cannot be seen, that is `now`.
    """
    written = heartbeat.monotonic_secs
    if written is None or boot is None or boot != heartbeat.boot or monotonic_secs < written:
        return now
    return later(heartbeat.alive_at, timedelta(seconds=monotonic_secs - written))


def reset_clock(heartbeat: Heartbeat, present: datetime, now: datetime) -> Heartbeat:
    """What is told of the past, when the wall clock that said `present` has been set to `now`."""
    step = now - present
    if abs(step) <= AHEAD:
        return heartbeat
    last, started, success = heartbeat.last_cycle, heartbeat.cycle_started_at, heartbeat.last_success_at
    return heartbeat._replace(
        last_cycle=last and last._replace(ended_at=later(last.ended_at, step)),
        cycle_started_at=started and later(started, step),
        last_success_at=success and later(success, step),
    )


# The verdict


def verdict(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    """Why the loop is unhealthy, in a sentence; None when it is not. `process_condition` is process.condition()'s."""
    if heartbeat.last_cycle is not None and heartbeat.is_held:
        return heartbeat.last_cycle.sentence
    return stuck(heartbeat, now, process_condition)


def stuck(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    """The verdict without what only somebody who looks can mend: a restart may help against the rest."""
    return trouble(heartbeat, now, process_condition) or (None if heartbeat.is_held else _not_recent(heartbeat, now))


def trouble(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    """The same of a loop that may be too young to have succeeded yet."""
    ahead = heartbeat.alive_at - now
    if ahead > AHEAD:
        secs = ahead.total_seconds()
        return f"the heartbeat is {quantity.duration(secs)} ahead of this clock, which has been set back since"
    if not heartbeat.once:
        found = _not_alive(heartbeat, now, process_condition)
        if found is not None:
            return found
    if heartbeat.failures >= (heartbeat.max_failures or FAILURES) and not heartbeat.is_held:
        success = heartbeat.last_success_at
        before = "" if success is None else f" (the last success was {ago(success, now)} ago, {_moment(success)})"
        return f"{_failed(heartbeat)}{before}{_last_words(heartbeat)}"
    return None


def _not_alive(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    if heartbeat.state == ENDED:
        return f"the loop ended {ago(heartbeat.alive_at, now)} ago{_last_words(heartbeat)}"
    pid = heartbeat.process.pid
    if process_condition == GONE:
        return f"the loop's process {pid} is gone without having said so; its last sign of life is from " + _moment(
            heartbeat.alive_at
        )
    if process_condition == STOPPED:
        return f"the loop's process {pid} is stopped (SIGSTOP); `kill -CONT {pid}` lets it go on"
    if heartbeat.state == SLEEPING and heartbeat.next_wake_up is not None:
        if now - heartbeat.next_wake_up > OVERSLEPT:
            return f"the loop should have woken up {ago(heartbeat.next_wake_up, now)} ago"
    elif now - heartbeat.alive_at > LONGEST_SILENCE:
        return f"a cycle has shown no progress for {ago(heartbeat.alive_at, now)}: it hangs"
    return None


def _not_recent(heartbeat: Heartbeat, now: datetime) -> Optional[str]:
    if heartbeat.last_success_at is None:
        if heartbeat.failures:
            return f"no cycle has succeeded yet, {_failed(heartbeat)}{_last_words(heartbeat)}"
        return "no cycle has ended yet"
    # A long cycle that makes progress is at work: it is asked whether it began in time.
    at_work = heartbeat.state == CYCLE and not heartbeat.once
    until = heartbeat.cycle_started_at if at_work and heartbeat.cycle_started_at is not None else now
    allowed = RECENT_INTERVALS * heartbeat.interval_secs + GRACE.total_seconds()
    if (until - heartbeat.last_success_at).total_seconds() <= allowed:
        return None
    since = ago(heartbeat.last_success_at, now)
    return f"the last successful cycle was {since} ago, {_failed(heartbeat)}{_last_words(heartbeat)}"


def _failed(heartbeat: Heartbeat) -> str:
    if heartbeat.failures == 1:
        return "the last cycle failed"
    return f"the last {heartbeat.failures} cycles failed" if heartbeat.failures else "and none has ended since"


def _last_words(heartbeat: Heartbeat) -> str:
    last = heartbeat.last_cycle
    return f", with exit code {last.exit_code}: {last.sentence}" if last and last.exit_code else ""


def ago(moment: datetime, now: datetime) -> str:
    """How long ago; clocks that differ a little make nothing negative."""
    return quantity.duration(max(0.0, (now - moment).total_seconds()))


def _moment(moment: datetime) -> str:
    return utc_text(moment.replace(microsecond=0))

"""How a cycle ended, put into the words of the heartbeat, the metrics and the service manager."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.errors import EXIT_OK
from storage_manager.base.log import EventLog
from storage_manager.base.text import printable
from storage_manager.config import Settings, limit_text
from storage_manager.jobs.progress import Progress
from storage_manager.loop.heartbeat import CycleResult
from storage_manager.store.snapshot import DANGLING
from storage_manager.store.survey import Totals


class Manner(NamedTuple):
    """How a loop is to run."""

    once: bool = False
    only_plan: bool = False
    max_failures: Optional[int] = None
    """After so many failed cycles in a row it gives up."""


class Turn(NamedTuple):
    """What a cycle works with."""

    settings: Settings
    clock: Clock
    log: EventLog
    progress: Progress
    """With what is remembered of the cycles before."""
    only_plan: bool


class Ending(NamedTuple):
    """How a cycle ended."""

    exit_code: int
    sentence: str
    interrupted: bool = False
    """A signal cut it short: neither a success nor a failure."""
    lacks_evidence: bool = False
    """It stopped because evidence was missing or contradicted itself: somebody must look."""


def left_behind(progress: Progress) -> Optional[Totals]:
    """The store as the cycle left it: what it found, less what it removed. None: it could not look."""
    found = progress.findings
    if found is None:
        return None
    totals = dict(found.anomaly_totals)
    count, size_bytes = totals.get(DANGLING, (0, 0))
    totals[DANGLING] = (max(0, count - progress.counts.swept_count) + len(progress.uncommitted), size_bytes)
    return found._replace(
        usage_bytes=max(0, found.usage_bytes - progress.counts.gone_bytes),
        session_count=max(0, found.session_count - progress.counts.gone_count),
        anomaly_totals=totals,
    )


def result(
    settings: Settings,
    ending: Ending,
    progress: Progress,
    left: Optional[Totals],
    ended_at: datetime,
    duration_secs: float,
) -> CycleResult:
    totals = {} if left is None else left.anomaly_totals
    return CycleResult(
        ended_at=ended_at,
        exit_code=ending.exit_code,
        sentence=printable(ending.sentence, 1000),
        duration_secs=round(duration_secs, 3),
        usage_bytes=None if left is None else left.usage_bytes,
        limit_bytes=settings.max_storage_bytes,
        limit_source=settings.limit_source,
        session_count=None if left is None else left.session_count,
        deleted_count=progress.counts.deleted_count,
        freed_bytes=progress.counts.freed_bytes,
        anomalies={kind: count for kind, (count, _) in totals.items() if count},
        suggested_dirs=() if left is None else tuple(printable(path, 4096) for path in left.suggested_dirs),
        lacks_evidence=ending.lacks_evidence,
    )


def summary(done: CycleResult) -> str:
    if done.usage_bytes is None or done.session_count is None or done.exit_code != EXIT_OK:
        return f"the cycle ended with exit code {done.exit_code}: {done.sentence}"
    held = f"{quantity.size(done.usage_bytes)} of {limit_text(done.limit_bytes, done.limit_source)}"
    return f"{held} in {quantity.counted(done.session_count, 'session')}; {done.sentence}"


# However short the interval and however long the cycle, other processes get a turn.
SHORTEST_SLEEP_SECS = 0.1


def sleep_secs(cycle_secs: float, interval_secs: float) -> float:
    """How long to sleep after a cycle that took `cycle_secs`, so that cycles begin `interval_secs` apart.

    A cycle that took longer than the interval is followed by the next one at once, never by several.
    """
    return max(SHORTEST_SLEEP_SECS, min(interval_secs, interval_secs - cycle_secs))


def wake_up_at(now: datetime, secs: float) -> datetime:
    """The moment `secs` from now; the end of the calendar when the clock is that far off."""
    try:
        return now + timedelta(seconds=secs)
    except OverflowError:
        return datetime.max


def elapsed_secs(clock: Clock, since: float) -> float:
    """By the monotonic clock; one that goes back makes things due rather than never."""
    return abs(clock.monotonic() - since)

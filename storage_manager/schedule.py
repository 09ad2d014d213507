"""Pure: when the loop wakes up next."""

from __future__ import annotations

from datetime import datetime, timedelta

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

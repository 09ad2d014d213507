"""What the ages of the sessions tell of the time to come. Pure: a snapshot and a clock's reading in, numbers out."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

from storage_manager.store.snapshot import Session, Snapshot

WEEK_DAYS = 7.0
# A store that is younger says nothing about a day.
SHORTEST_DAYS = 1.0


class Growth(NamedTuple):
    """What was saved of late, as far as it is still there."""

    days: float
    """How far back it was looked at: a week, or as long as there have been sessions."""
    session_count: int
    size_bytes: int

    @property
    def bytes_per_day(self) -> float:
        return self.size_bytes / self.days

    def days_for(self, size_bytes: int) -> Optional[float]:
        """How long it takes, at this rate, until so much more has been saved. None when it never will be."""
        return max(0, size_bytes) / self.bytes_per_day if self.size_bytes else None


def growth(snapshot: Snapshot, now: datetime) -> Optional[Growth]:
    """None when the store is empty or younger than a day. Sessions of the future count as saved now."""
    sessions = snapshot.sessions
    if not sessions:
        return None
    days = min(WEEK_DAYS, (now - sessions[0].created_at) / timedelta(days=1))
    if days < SHORTEST_DAYS:
        return None
    since = Session(now - timedelta(days=days), "", "", None, None, 0)
    late = sessions[bisect_left(sessions, since) :]
    return Growth(days, len(late), sum(session.size_bytes for session in late))

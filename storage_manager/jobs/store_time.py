"""What time it is at least, by all that a store shows: a purge by age doubts a clock that is far ahead of that."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import ClockDoubtful
from storage_manager.base.times import from_timestamp, utc_text
from storage_manager.jobs.plan import Plan
from storage_manager.jobs.policy import clock_is_doubtful
from storage_manager.store.draft import vouches
from storage_manager.store.names import METADATA_NAME
from storage_manager.store.snapshot import Snapshot


class StoreTime:
    """The latest moment that a store has shown; a loop remembers it, and the time that has passed since.

    So a loop does not doubt a clock that was right when the service was last at work. What the tool itself writes by a
    clock in question shows nothing. Not guaranteed: that a wrong clock is found out by which the service saves, too.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shown: Optional[tuple[datetime, float]] = None
        """The latest moment, and when that was by the monotonic clock."""

    def require_clock(
        self, plan: Plan, age_days: float, snapshot: Snapshot, storage_dir: str, now: datetime, if_right: str
    ) -> None:
        """Refuse a purge by age that would delete everything only because of the clock. `if_right` is what to do when
        the clock is right. Raises ClockDoubtful."""
        latest = self._latest(snapshot, storage_dir, now)
        if latest is not None and clock_is_doubtful(plan, age_days, now, latest):
            raise ClockDoubtful(
                f"refused: every {plan.noun} ({len(plan.victims):,}) would go, but this clock says "
                f"{utc_text(now)[:19]} UTC, and by what the store has shown it is {utc_text(latest)[:19]} UTC or "
                f"later. Correct the clock; if it is right, and nobody has used the store since, {if_right}"
            )

    def _latest(self, snapshot: Snapshot, storage_dir: str, now: datetime) -> Optional[datetime]:
        monotonic_secs = self._clock.monotonic()
        moments = _modified(storage_dir)
        if self._shown is not None:
            moment, shown_secs = self._shown
            gone = timedelta(seconds=max(0.0, monotonic_secs - shown_secs))
            moments.append(now if now - moment <= gone else moment + gone)
        latest = snapshot.latest(now, moments)
        if latest is not None:
            self._shown = latest, monotonic_secs
        return latest


def _modified(storage_dir: str) -> list[datetime]:
    """When metadata.json was last written, unless by a clock in question. The directory's time says nothing: our own
    lock file changes it."""
    with suppress(OSError):
        status = os.lstat(os.path.join(storage_dir, METADATA_NAME))
        if vouches(status):
            return [from_timestamp(status.st_mtime)]
    return []

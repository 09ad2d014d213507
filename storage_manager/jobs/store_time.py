"""What time it is at least, by all that a store shows: a purge by age doubts a clock that is far ahead of that."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Optional

from storage_manager.base.times import from_timestamp
from storage_manager.jobs.memory import Shown
from storage_manager.store.draft import vouches
from storage_manager.store.names import METADATA_NAME
from storage_manager.store.snapshot import Snapshot


def latest_moment(
    snapshot: Snapshot, storage_dir: str, before: Optional[Shown], now: datetime, monotonic_secs: float
) -> Optional[datetime]:
    """The latest moment up to `now` that a store has shown, also to the cycle before; None: it shows none.

    So a loop does not doubt a clock that was right when the service was last at work. What the tool itself writes by a
    clock in question shows nothing. Not guaranteed: that a wrong clock is found out by which the service saves, too.
    """
    moments = _modified(storage_dir)
    if before is not None:
        gone = timedelta(seconds=max(0.0, monotonic_secs - before.monotonic_secs))
        moments.append(now if now - before.moment <= gone else before.moment + gone)
    return snapshot.latest(now, moments)


def _modified(storage_dir: str) -> list[datetime]:
    """When metadata.json was last written, unless by a clock in question. The directory's time says nothing: our own
    lock file changes it."""
    with suppress(OSError):
        status = os.lstat(os.path.join(storage_dir, METADATA_NAME))
        if vouches(status):
            return [from_timestamp(status.st_mtime)]
    return []

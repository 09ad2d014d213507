"""What a run has seen and done so far, and the one report of its failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from storage_manager.base.errors import LockBusy, StorageManagerError, StoreMissing
from storage_manager.base.log import EventLog
from storage_manager.store.survey import Totals


class Progress:
    """What a run has seen and done so far: it must be known whatever ends the run."""

    def __init__(self) -> None:
        self.findings: Optional[Totals] = None
        self.uncommitted: set[str] = set()
        self.deleted_count = 0
        self.freed_bytes = 0
        self.gone_count = 0
        self.gone_bytes = 0
        self.failed: set[str] = set()
        self.swept_count = 0


@contextmanager
def reporting(kind: str, storage_dir: str, progress: Progress, log: EventLog) -> Iterator[None]:
    """Tell of a run's failure in the one event that fits it; the error goes on, marked as reported."""
    try:
        yield
    except LockBusy as error:
        log.warning(error.event, str(error), storage_dir=storage_dir, **error.fields)
        error.reported = True
        raise
    except StoreMissing:
        raise  # for a command an error, for the loop a warning
    except StorageManagerError as error:
        special = error.event != StorageManagerError.event
        log.error(
            error.event if special else f"storage_manager.{kind}.failed",
            str(error),
            storage_dir=storage_dir,
            deleted_count=progress.deleted_count,
            freed_bytes=progress.freed_bytes,
            exit_code=error.exit_code,
            **error.fields,
        )
        error.reported = True
        raise

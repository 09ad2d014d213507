"""How a cycle ended, put into the words of the heartbeat, the metrics and the service manager."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager import report
from storage_manager.config import Settings
from storage_manager.errors import EXIT_OK
from storage_manager.heartbeat import CycleResult
from storage_manager.metrics import Sighting
from storage_manager.model import DANGLING
from storage_manager.text import printable
from storage_manager.transaction import Progress


class Ending(NamedTuple):
    """How a cycle ended."""

    exit_code: int
    sentence: str
    interrupted: bool = False
    """A signal cut it short: neither a success nor a failure."""


def sighting(progress: Progress) -> Optional[Sighting]:
    """The store as the cycle left it: what it found, less what it removed."""
    findings = progress.findings
    if findings is None:
        return None
    totals = dict(findings.anomaly_totals)
    count, size_bytes = totals.get(DANGLING, (0, 0))
    totals[DANGLING] = (max(0, count - progress.swept_count), size_bytes)
    return Sighting(
        usage_bytes=max(0, findings.usage_bytes - progress.gone_bytes),
        session_count=max(0, findings.session_count - progress.gone_count),
        anomaly_totals=totals,
        misplaced=bool(findings.suggested_dirs),
    )


def result(
    settings: Settings,
    ending: Ending,
    progress: Progress,
    seen: Optional[Sighting],
    ended_at: datetime,
    duration_secs: float,
) -> CycleResult:
    findings = progress.findings
    totals = {} if seen is None else seen.anomaly_totals
    return CycleResult(
        ended_at=ended_at,
        exit_code=ending.exit_code,
        sentence=printable(ending.sentence, 1000),
        duration_secs=round(duration_secs, 3),
        usage_bytes=None if seen is None else seen.usage_bytes,
        limit_bytes=settings.max_storage_bytes,
        session_count=None if seen is None else seen.session_count,
        deleted_count=progress.deleted_count,
        freed_bytes=progress.freed_bytes,
        anomalies={kind: count for kind, (count, _) in totals.items() if count},
        suggested_dirs=() if findings is None else tuple(printable(path, 4096) for path in findings.suggested_dirs),
    )


def summary(settings: Settings, ending: Ending, seen: Optional[Sighting]) -> str:
    if seen is None or ending.exit_code != EXIT_OK:
        return f"the cycle ended with exit code {ending.exit_code}: {ending.sentence}"
    held = f"{report.size(seen.usage_bytes)} of {report.size(settings.max_storage_bytes)}"
    return f"{held} in {report.counted(seen.session_count, 'session')}; {ending.sentence}"

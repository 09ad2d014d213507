"""The files that settings name for what the tool tells of itself: which of them may not be written."""

from __future__ import annotations

from typing import Final, Optional

from storage_manager.base.append import older
from storage_manager.base.log import EventLog, log_files
from storage_manager.base.text import printable
from storage_manager.config import Fallback, Settings, report_fallbacks
from storage_manager.jobs.journal import HistoryFile
from storage_manager.loop.history_file import history_file
from storage_manager.loop.status_file import refusal

# By what names them in the environment.
LOG: Final = "LOG_FILE"
HEARTBEAT: Final = "HOUSEKEEPER_HEARTBEAT_FILE"
METRICS: Final = "METRICS_FILE"
HISTORY: Final = "HISTORY_FILE"


def refused_files(settings: Settings) -> dict[str, Fallback]:
    """Those that could be a part of the store, or belong to another setting, by name. Of two settings with one file the
    first keeps it: a file that is replaced would take all lines of a log with it. Raises nothing.
    """
    log, metrics, history = settings.log_file, settings.metrics_file, history_file(settings)
    taken = [] if settings.env_file is None else [settings.env_file]
    refused = {}
    for name, instead, paths in (
        (LOG, "no log file", [] if log is None else log_files(log)),
        (HEARTBEAT, "no heartbeat", [settings.heartbeat_file]),
        (METRICS, "no metrics", [] if metrics is None else [metrics]),
        (HISTORY, "no history", [] if history is None else [history.path, older(history.path)]),
    ):
        reasons = filter(None, (refusal(path, settings.storage_dir, taken) for path in paths))
        reason = next(reasons, None)
        if reason is not None:
            refused[name] = Fallback(f"{settings.prefix}_{name}", printable(paths[0], 200), instead, reason)
        taken += paths
    return refused


def writable_history_file(settings: Settings, log: EventLog) -> Optional[HistoryFile]:
    """The file that the settings ask for; None where they ask for none, and after an event where it is refused."""
    refused = refused_files(settings).get(HISTORY)
    if refused is None:
        return history_file(settings)
    report_fallbacks([refused], log)
    return None

"""The file that runs tell of their deletions in: which one it is, and what is in it."""

from __future__ import annotations

import os
from typing import Optional

from storage_manager.base.append import older
from storage_manager.base.errors import described, errno_name
from storage_manager.base.log import EventLog
from storage_manager.base.text import printable
from storage_manager.config import OFF, Settings, default_file, default_files_beside
from storage_manager.jobs.history import Line, decode, deleted_by
from storage_manager.jobs.journal import MOST_BYTES, HistoryFile
from storage_manager.jobs.plan import Deleted
from storage_manager.loop.status_file import is_one_place, place_of, read_file
from storage_manager.store.names import METADATA_NAME


def history_file(settings: Settings) -> Optional[HistoryFile]:
    """The file that the settings ask for; None where they ask for none. Every spelling of a store leads to one file."""
    path, place = settings.history_file, place_of(settings.storage_dir)
    if path is None:
        path = default_file(settings.temporary_dir, place, "history")
    elif path.lower() == OFF:
        return None
    metadata = os.path.join(settings.storage_dir, METADATA_NAME)
    return HistoryFile(path, printable(place), f"{settings.prefix}_HISTORY_FILE", metadata)


def earlier_deletions(settings: Settings, log: EventLog) -> Deleted:
    """Of the runs that the history tells of; none, after an event, where it cannot be read."""
    file = history_file(settings)
    if file is None:
        return Deleted()
    try:
        return deleted_by(read_history(file) or ())
    except (OSError, ValueError) as error:
        log.warning(
            "storage_manager.history_failed",
            f"cannot read the history {file.path}: {described(error)}; what earlier runs have deleted is not known. "
            f"Mend it, or name another file: {file.variable}",
            file=file.path,
            errno=errno_name(getattr(error, "errno", None)),
        )
        return Deleted()


def read_history(file: HistoryFile) -> Optional[list[Line]]:
    """What both files say of the store, the older one first; None when there is neither. Raises OSError, and like
    read_file()."""
    found = []
    # The newer one first: what is rotated meanwhile is then read twice, not missed.
    for name in (file.path, older(file.path)):
        try:
            found.append(read_file(name, 2 * MOST_BYTES))  # one line alone may be longer than there was room for
        except FileNotFoundError:
            found.append(b"")
    newer, before = found
    if before.startswith(newer):
        newer = b""
    return decode(before + newer, lambda place: is_one_place(place, file.storage_dir)) if before or newer else None


def others(path: str) -> list[str]:
    """The histories of the same store that other users' runs have written, where `path` is a default one."""
    try:
        return default_files_beside(path, "store", "kind")
    except OSError:  # then there is nothing of this user's, either
        return []

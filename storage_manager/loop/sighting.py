"""What the loop sees of its store, to find out whether that has gone: jobs/evidence says so."""

from __future__ import annotations

import os
from typing import Optional

from storage_manager.jobs.memory import Found, Sighting
from storage_manager.store.names import METADATA_NAME, is_blob_name, previous_names


def sight(storage_dir: str, session_count: int) -> Optional[Sighting]:
    """None when no directory can be seen. Raises nothing."""
    try:
        status = os.stat(os.path.join(storage_dir, ""))
        has_metadata = _is_there(storage_dir, METADATA_NAME)
    except OSError:  # the run itself has said so
        return None
    return Sighting(status.st_dev, status.st_ino, has_metadata, session_count)


def look_for(seen: Sighting, storage_dir: str) -> Optional[Found]:
    """What is in the place of a store that was seen; None for a directory that does not exist or cannot be looked at,
    which the run reports. Raises nothing.
    """
    now = sight(storage_dir, 0)
    if now is None:
        return None
    is_same = seen.is_same_directory(now)
    try:
        # By name, for a listing may be short.
        has_metadata = any(_is_there(storage_dir, name) for name in (METADATA_NAME, *previous_names()))
        has_blobs = not is_same and any(map(is_blob_name, os.listdir(storage_dir)))
    except OSError:
        return None
    return Found(os.path.join(storage_dir, METADATA_NAME), is_same, has_metadata, has_blobs)


def _is_there(directory: str, name: str) -> bool:
    """Raises OSError, unless the name certainly does not exist."""
    try:
        os.lstat(os.path.join(directory, name))
    except FileNotFoundError:
        return False
    return True

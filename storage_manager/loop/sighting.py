"""What the loop saw of its store, and whether that has gone since: unmounted, moved away, or deleted.

A service that empties its store leaves a metadata.json that says so. A store that has gone leaves nothing, or an empty
directory, and an empty directory is no evidence that its sessions were deleted.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.store.names import METADATA_NAME, is_blob_name, previous_names


class Sighting(NamedTuple):
    """A store as a cycle left it. Another device or inode: another directory, or another mount, under its name."""

    device: int
    inode: int
    had_metadata: bool
    session_count: int

    def is_same_directory(self, other: Sighting) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)


def sight(storage_dir: str, session_count: int) -> Optional[Sighting]:
    """None when no directory can be seen. Raises nothing."""
    try:
        status = os.stat(os.path.join(storage_dir, ""))
        has_metadata = _is_there(storage_dir, METADATA_NAME)
    except OSError:  # the run itself has said so
        return None
    return Sighting(status.st_dev, status.st_ino, has_metadata, session_count)


def what_has_gone(storage_dir: str, seen: Optional[Sighting], heartbeat_file: str) -> Optional[str]:
    """In a sentence, what is no longer there of a store that had sessions; None when nothing shows that it has gone.

    A directory that does not exist or cannot be looked at is reported by the run, not here. Raises nothing.
    """
    now = sight(storage_dir, 0)
    if now is None or seen is None or not seen.session_count:
        return None
    is_same = seen.is_same_directory(now)
    try:
        # By name, for a listing may be short. With an old file alone, the run itself restores metadata.json.
        has_metadata = any(_is_there(storage_dir, name) for name in (METADATA_NAME, *previous_names()))
        # An empty metadata.json says nothing in a new directory: a service makes one wherever it starts.
        is_there = has_metadata and (is_same or any(map(is_blob_name, os.listdir(storage_dir))))
    except OSError:
        return None
    if is_there:
        return None
    if not is_same:
        what = f"another directory is in the place of {storage_dir}, and it holds no store: is a volume not mounted?"
    elif seen.had_metadata:
        what = f"{os.path.join(storage_dir, METADATA_NAME)} has gone."
    else:
        return None
    way_out = f"remove {heartbeat_file} while no loop runs"
    if is_same:
        way_out += ", or let the service create metadata.json"
    return (
        f"{what} {quantity.counted(seen.session_count, 'session')} had been seen there; nothing more is deleted. "
        f"If this is meant, {way_out}"
    )


def _is_there(directory: str, name: str) -> bool:
    """Raises OSError, unless the name certainly does not exist."""
    try:
        os.lstat(os.path.join(directory, name))
    except FileNotFoundError:
        return False
    return True

"""The files that settings name, for the log and for what the loop tells: none of them may be somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Optional

from storage_manager.entry import is_blob_name
from storage_manager.holder import LOCK_NAME
from storage_manager.status_file import lies_in
from storage_manager.store import METADATA_NAME


def refusal(path: str, storage_dir: str, taken: Iterable[str] = ()) -> Optional[str]:
    """Why nothing may be written to `path`, or None: a slip in a setting must not cost a session of this store,
    anybody's metadata.json, or what another setting keeps in the file. `taken` are the files of other settings.

    Raises nothing. Not promised: that a second hard link to such a file is seen.
    """
    place = _place(path)
    if any(_is_of_a_store(os.path.basename(name)) for name in (path, place)) or lies_in(path, storage_dir):
        return "in the storage directory, or under that name, it might be taken for a part of a store"
    if place in map(_place, taken):
        return "another setting names the same file"
    return None


def _is_of_a_store(name: str) -> bool:
    return METADATA_NAME in name or name == LOCK_NAME or is_blob_name(name) is not None


def _place(path: str) -> str:
    """Where a path leads to, through links that are there; as it is when the current directory is gone."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path

"""One storage directory: what is in it, and the removal of one blob.

Blob names are only ever taken from the directory listing and used relative to the directory's descriptor, so
nothing that metadata.json says can name a file outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from storage_manager.base.errors import StoreError, StoreMissing, failing_as
from storage_manager.store.names import GUID_LENGTH, METADATA_NAME


class Store:
    """An open storage directory. Every file in it is reached through `dir_fd`."""

    def __init__(self, path: str, dir_fd: int) -> None:
        self.path = path
        self.dir_fd = dir_fd

    def file(self, name: str) -> str:
        """A file's full name, for messages."""
        return os.path.join(self.path, name)

    def remove_blob(self, name: str) -> bool:
        """Delete a blob; False when it was gone already. Raises OSError."""
        try:
            os.unlink(name, dir_fd=self.dir_fd)
        except FileNotFoundError:
            return False
        return True

    def guids_on_disk(self) -> set[str]:
        """What the names of the files begin with: a session whose guid is not among them has no blob at all.

        Raises StoreError.
        """
        with failing_as("list", self.path):
            return {name[:GUID_LENGTH] for name in os.listdir(self.dir_fd)}


@contextmanager
def open_store(path: str) -> Iterator[Store]:
    """Open a storage directory. Raises StoreMissing or StoreError; creates nothing."""
    try:
        dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is not a directory"
        raise StoreMissing(
            f"the storage directory {path} {what}: create it, or name another with --storage-dir or --data-root"
        ) from error
    except OSError as error:
        raise StoreError("open the storage directory", path, error) from error
    try:
        yield Store(path, dir_fd)
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(dir_fd)


def stores_below(path: str) -> list[str]:
    """Direct sub-directories that hold a metadata.json: where a store may be that was meant."""
    found = []
    try:
        with os.scandir(path) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False) and os.path.isfile(os.path.join(item.path, METADATA_NAME)):
                    found.append(item.path)
    except OSError:  # this only helps to explain an empty store; whatever fails here is no news about it
        return []
    return sorted(found)

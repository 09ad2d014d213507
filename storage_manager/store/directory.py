"""One storage directory, and the few calls that reach what is in it.

Blob names are taken from the directory listing, or are a UUID with a plain extension where an entry's blob is looked
up, and used relative to the directory's descriptor: nothing that metadata.json says can name a file outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Optional

from storage_manager.base.errors import StoreError, StoreMissing, failing_as
from storage_manager.store.names import GUID_LENGTH, METADATA_NAME

# A link in a file's place is not followed, and a FIFO must not hang us.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Store:
    """An open storage directory. Every file in it is reached through `dir_fd`, and no link is followed."""

    def __init__(self, path: str, dir_fd: int) -> None:
        self.path = path
        self.dir_fd = dir_fd

    def file(self, name: str) -> str:
        """A file's full name, for messages."""
        return os.path.join(self.path, name)

    def stat(self, name: str) -> os.stat_result:
        """Raises OSError."""
        return os.stat(name, dir_fd=self.dir_fd, follow_symlinks=False)

    def status(self, name: str) -> Optional[os.stat_result]:
        """None when there is no such file. Raises StoreError."""
        with failing_as("examine", self.file(name)):
            try:
                return self.stat(name)
            except FileNotFoundError:
                return None

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor; what is created is its owner's alone at first. Raises OSError."""
        return os.open(name, flags | _SAFELY, 0o600, dir_fd=self.dir_fd)

    def link(self, name: str, other: str) -> None:
        """Raises OSError."""
        os.link(name, other, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd, follow_symlinks=False)

    def rename(self, name: str, other: str) -> None:
        """Raises OSError."""
        os.rename(name, other, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)

    def unlink(self, name: str) -> bool:
        """Remove a name; False when it was gone already. Raises OSError."""
        try:
            os.unlink(name, dir_fd=self.dir_fd)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> bool:
        """Like unlink(). Raises StoreError."""
        with failing_as("remove", self.file(name)):
            return self.unlink(name)

    def guids_on_disk(self) -> set[str]:
        """What the names of the listed files begin with. A listing can be short: who is not among them may be there.

        Raises StoreError.
        """
        with failing_as("list", self.path):
            return {name[:GUID_LENGTH] for name in os.listdir(self.dir_fd)}


def close(fd: int) -> None:
    """Close a descriptor through which nothing was written, or what was has been synced: no failure matters."""
    with suppress(OSError):
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


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
        close(dir_fd)


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

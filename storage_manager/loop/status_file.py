"""Small files that others read while they are replaced: whole at every moment, and never reached through a symlink."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Optional

from storage_manager.store.names import LOCK_NAME, METADATA_NAME, is_blob_name

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_file(path: str, data: bytes) -> None:
    """Put `data` in the place of `path`: a reader sees the old content or the new one, nothing in between.

    A symlink at `path` is replaced, not followed; what is neither that nor a regular file is left alone. Several
    writers may do this at once, the last one wins. Not promised: that the content outlives a power cut (no fsync:
    the file tells of a running process, and a disk that is slow to sync must not hold that process up), and that a
    process killed in here leaves no `.<name>.<random>.tmp` behind. Raises OSError.
    """
    with suppress(FileNotFoundError):
        kind = os.lstat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
            raise OSError(errno.EEXIST, "it is there, is not a regular file, and is left alone", path)
    directory, name = os.path.split(path)
    # Never the same name twice: two writers of one file must not rename each other's half-written draft.
    draft = os.path.join(directory, f".{name}.{os.urandom(4).hex()}.tmp")
    fd = os.open(draft, _CREATE, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, 0o644)  # whatever the umask says: a probe or a collector may be another user
        finally:
            os.close(fd)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def read_file(path: str, most_bytes: int) -> bytes:
    """The content of a file that `replace_file()` wrote.

    Raises OSError, and ValueError with what is wrong: a symlink, a FIFO and the like, a file that is larger than
    `most_bytes`, or one in a directory where everybody may create files that neither we nor root own: in /tmp,
    anybody could have made it.
    """
    try:
        fd = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        directory = os.stat(os.path.dirname(path) or ".")
        if directory.st_mode & stat.S_IWOTH and status.st_uid not in (0, os.geteuid()):
            raise ValueError(f"it belongs to user {status.st_uid}, who may have made it up")
        data = b""
        while len(data) <= most_bytes:
            part = os.read(fd, most_bytes + 1 - len(data))
            if not part:
                return data
            data += part
        raise ValueError(f"it is larger than {most_bytes} bytes")
    finally:
        os.close(fd)


def lies_in(path: str, directory: str) -> bool:
    """Whether a file of that name would be, or is, right in `directory`."""
    try:
        home = os.path.dirname(os.path.realpath(path))
        return home == os.path.realpath(directory) or os.path.samefile(home, directory)
    except OSError:  # one of them is missing, or cannot be examined; or the current directory is gone
        return False


def refusal(path: str, storage_dir: str, taken: Iterable[str] = ()) -> Optional[str]:
    """Why nothing may be written to `path`, or None: a slip in a setting must not cost a session of this store,
    anybody's metadata.json, or what another setting keeps in the file. `taken` are the files of other settings.

    Raises nothing. Not promised: that a second hard link to such a file is seen.
    """
    place = place_of(path)
    if any(_is_of_a_store(os.path.basename(name)) for name in (path, place)) or lies_in(path, storage_dir):
        return "in the storage directory, or under that name, it might be taken for a part of a store"
    if place in map(place_of, taken):
        return "another setting names the same file"
    return None


def _is_of_a_store(name: str) -> bool:
    return METADATA_NAME in name or name == LOCK_NAME or is_blob_name(name) is not None


def is_one_place(path: str, other: str) -> bool:
    """Whether two spellings lead to one directory, or will."""
    return path == other or place_of(path) == place_of(other)


def place_of(path: str) -> str:
    """Where a path leads to, through links that are there; as it is when the current directory is gone, and where it is
    none."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path

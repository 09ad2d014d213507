"""What a new metadata.json must have of the file that it replaces, so that the same people may use it."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple, Optional

from storage_manager.base.errors import NotWritable, failing_as
from storage_manager.base.quantity import counted
from storage_manager.store.directory import Store
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS, TMP_NAME, previous_names

ACCESS_LIST = "system.posix_acl_access"
NO_ATTRIBUTE = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)

_PROC = "/proc"
_USUAL_OVERFLOW_ID = 65534
_EVERY_ID_COUNT = (1 << 32) - 1  # all 32-bit numbers but the last, which stands for "leave it as it is"


class Likeness(NamedTuple):
    """Owner, group, mode, and extended attributes: the POSIX access control list, and those of users."""

    user: int
    group: int
    mode: int
    attributes: dict[str, bytes]

    def shown_by(self, status: os.stat_result) -> bool:
        return (self.user, self.group, self.mode) == (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def likeness_of_metadata(store: Store, fd: int, status: os.stat_result) -> Likeness:
    """Of metadata.json, which is open as `fd`.

    Raises NotWritable when a new file would lack what cannot be given to it: other names, an owner who is not known
    here. Raises StoreError.
    """
    path = store.file(METADATA_NAME)
    _refuse_other_names(store, status)
    return _likeness(path, status, _attributes(fd, path))


def likeness_of_blob(store: Store, name: str, mode_mask: int) -> Likeness:
    """Its owner and group, and of its mode what is in `mode_mask`.

    Raises NotWritable when the owner is not known here, StoreError.
    """
    path = store.file(name)
    with failing_as("examine", path):
        status = store.stat(name)
    like = _likeness(path, status, {})
    return like._replace(mode=like.mode & mode_mask)


def _likeness(path: str, status: os.stat_result, attributes: dict[str, bytes]) -> Likeness:
    _refuse_unmapped(path, "user", "uid", status.st_uid)
    _refuse_unmapped(path, "group", "gid", status.st_gid)
    return Likeness(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), attributes)


def _refuse_other_names(store: Store, status: os.stat_result) -> None:
    """A rename would leave other names of the file with the old text. Those that a commit makes for a while are ours.

    Raises NotWritable, StoreError.
    """
    if status.st_nlink <= 1:
        return
    ours = (store.status(name) for name in (TMP_NAME, *previous_names(MOST_PREVIOUS + 1)))
    count = status.st_nlink - 1 - sum(found is not None and os.path.samestat(found, status) for found in ours)
    if count > 0:
        path = store.file(METADATA_NAME)
        raise NotWritable(
            f"{path} has {counted(count, 'other name')} (hard links), which would keep the old text when the file is "
            f"replaced. Find them (find DIRECTORY -xdev -samefile {path}), and remove them or make them copies"
        )


def _refuse_unmapped(path: str, what: str, kind: str, shown_id: int) -> None:
    """An id that our user namespace does not map is shown as the overflow id, which may also be somebody's own.

    Without a readable map there is no such namespace, as far as anybody can tell. Raises NotWritable.
    """
    mapped = _numbers(f"self/{kind}_map")
    overflow_id = (_numbers(f"sys/kernel/overflow{kind}") or [_USUAL_OVERFLOW_ID])[0]
    if shown_id == overflow_id and mapped is not None and sum(mapped[2::3]) < _EVERY_ID_COUNT:
        raise NotWritable(
            f"{path} belongs to {what} {shown_id}, which is how a user namespace shows every {what} that it does not "
            f"know: a new file could belong to somebody else. Run storage_manager outside of the namespace or "
            f"container, or map the {what} into it; if the file really is that {what}'s, give it to another"
        )


def _numbers(name: str) -> Optional[list[int]]:
    """What a file below /proc says; None when it cannot be read."""
    try:
        with open(f"{_PROC}/{name}", "rb") as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return None


def _attributes(fd: int, path: str) -> dict[str, bytes]:
    """Raises StoreError: without knowing the access list, for one, the new file would lock its reader out."""
    found = {}
    with failing_as("read the extended attributes of", path):
        for name in (ACCESS_LIST, *_names_of_users(fd)):
            try:
                found[name] = os.getxattr(fd, name)
            except OSError as error:
                if error.errno not in NO_ATTRIBUTE:
                    raise
    return found


def _names_of_users(fd: int) -> list[str]:
    try:
        return [name for name in os.listxattr(fd) if name.startswith("user.")]
    except OSError as error:
        if error.errno in NO_ATTRIBUTE:
            return []
        raise

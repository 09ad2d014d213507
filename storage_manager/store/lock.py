"""The prune lock: at most one prune of this tool at a time on a store, and none beside the previous generation's.

Guarantees: the kernel's lock (flock) is held on the lock file, and where the file system allows it on the
directory as well, so that somebody who deletes the lock file lets nobody in. A holder that dies frees it.
Not guaranteed: anything on a file system whose flock is not shared between the hosts that mount it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Any, Optional

from storage_manager.base.clock import SILENCE_SECS, Clock
from storage_manager.base.errors import LockBusy, LockLost, LockUnavailable, StoreError, describe_errno, failing_as
from storage_manager.base.log import EventLog
from storage_manager.store.directory import Store, close
from storage_manager.store.draft import DISK_FULL
from storage_manager.store.holder import (
    LARGEST_LINE,
    LINE_WRITTEN_SECS,
    Holding,
    age_secs_of,
    described,
    holder_at_path,
    holder_in,
    judge,
    parse_holder,
    previous_generation_pid,
    write_holder,
)
from storage_manager.store.names import LOCK_NAME

# How often a waiting prune looks again; flock has no time-out of its own.
RETRY_SECS = 0.1


class PruneLock:
    """The lock as a value: acquire it with `acquire_lock`, use it in a `with` statement."""

    def __init__(self, store: Store, log: EventLog, guard: Optional[int], fd: Optional[int]) -> None:
        self._store = store
        self._log = log
        self._guard = guard
        self._fd = fd

    def refresh(self) -> None:
        """Show that the holder lives, and check that the lock is still ours. Raises LockLost.

        The previous generation judges a lock file by its age alone, so a long prune has to renew it.
        """
        if self._fd is None:
            return
        with suppress(OSError):  # only the age for the previous generation suffers
            os.utime(self._fd)
        if _is_at(self._store, self._fd):
            return
        path = self._store.file(LOCK_NAME)
        if self._guard is not None and self._store.status(LOCK_NAME) is None:
            # Deleted, as the previous generation does with a lock it finds busy. The directory's lock still
            # keeps our own kind out; go on, visible again.
            self._log.warning("storage_manager.lock_file", f"{path} was deleted while held; it is written anew")
            self._recreate(self._fd)
            return
        raise LockLost(
            f"{path} was replaced while it was held: another prune may be running. Stopped after committing; "
            f"see that nothing deletes or replaces that file"
        )

    def _recreate(self, held: int) -> None:
        try:
            fd, created = _open_lock(self._store)
        except OSError:  # tried again at the next refresh; meanwhile the directory's lock holds
            return
        if not created or not _flock(self._store, fd):
            close(fd)
            return
        with suppress(OSError):
            os.pwrite(fd, os.pread(held, LARGEST_LINE, 0), 0)
        self._fd = fd
        close(held)

    @property
    def is_exclusive(self) -> bool:
        """Whether no other run of this tool can be at work even if the lock file is gone."""
        return self._guard is not None

    def release(self) -> None:
        """Remove the lock file while it is still locked, then let go. Never fails: the next run can clean up."""
        try:
            if self._fd is not None and _is_at(self._store, self._fd):
                self._store.unlink(LOCK_NAME)
        except (OSError, StoreError) as error:
            self._log.warning(
                "storage_manager.lock_file", f"cannot remove {self._store.file(LOCK_NAME)}: {error}; the next run will"
            )
        _let_go(self)

    def __enter__(self) -> PruneLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def acquire_lock(
    store: Store, log: EventLog, clock: Clock, command: str, timeout_secs: float, stale_secs: float
) -> PruneLock:
    """Take the lock, waiting for it up to `timeout_secs`. Raises LockBusy, LockUnavailable, StoreError, Interrupted."""
    with clock.doing(f"waiting for another prune, up to {timeout_secs:,.0f} s"):
        return _acquire_lock(store, log, clock, command, timeout_secs, stale_secs)


def _acquire_lock(
    store: Store, log: EventLog, clock: Clock, command: str, timeout_secs: float, stale_secs: float
) -> PruneLock:
    now = clock.monotonic()
    deadline = now + timeout_secs
    silent_until = now + SILENCE_SECS
    while True:
        try:
            return _try_to_acquire(store, log, clock, command, stale_secs)
        except LockBusy as busy:
            clock.check()
            now = clock.monotonic()
            left = deadline - now
            if silent_until <= now < deadline:
                silent_until = deadline
                log.info(
                    "storage_manager.lock_wait", f"{busy}; waiting for up to {left:.0f} more seconds", **busy.fields
                )
            if left <= 0:
                age_secs = busy.holder.get("age_secs")
                if isinstance(age_secs, (int, float)) and age_secs > stale_secs:
                    log.warning(
                        "housekeeper.lock_stale",
                        f"the lock has been held for {age_secs:.0f} s, longer than {stale_secs:.0f} s: its holder is "
                        f"alive but may be stuck",
                        action="left",
                        **busy.fields,
                    )
                raise
            clock.progress()
            clock.sleep(min(RETRY_SECS, left))


def _try_to_acquire(store: Store, log: EventLog, clock: Clock, command: str, stale_secs: float) -> PruneLock:
    lock = PruneLock(store, log, _lock_directory(store, clock), None)
    try:
        while True:
            clock.check()
            try:
                fd, created = _open_lock(store)
            except OSError as error:
                if lock._guard is not None and error.errno in DISK_FULL:
                    # No room for the file, and making room is our job. The directory's lock is a lock, too.
                    log.warning(
                        "storage_manager.lock_file",
                        f"the disk is too full to create {store.file(LOCK_NAME)}; only the directory is locked",
                    )
                    return lock
                raise _unusable(store, error) from error
            lock._fd = fd
            _refuse_special(store, fd)
            try:
                locked = _flock(store, fd)
            except LockUnavailable:
                if created:  # the previous generation would take the mere file for a lock
                    with suppress(OSError):
                        store.unlink(LOCK_NAME)
                raise
            if not locked:
                raise _busy(store, holder_in(fd, clock))
            if _is_at(store, fd):
                break
            lock._fd = None
            close(fd)  # its holder has just removed it: start over with the next one
        if not created:
            _consider_leftover(store, log, clock, fd, stale_secs)
        write_holder(clock, store, fd, command)
        return lock
    except BaseException:
        _let_go(lock)
        raise


def _let_go(lock: PruneLock) -> None:
    """Close without removing the file."""
    held = (lock._fd, lock._guard)
    lock._fd = lock._guard = None
    for fd in held:
        if fd is not None:
            close(fd)


def _lock_directory(store: Store, clock: Clock) -> Optional[int]:
    """Lock the directory itself: a lock that nobody can delete. None where directories cannot be locked."""
    # A descriptor of its own: flock belongs to the open file description.
    with failing_as("open the storage directory", store.path):
        guard = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=store.dir_fd)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        close(guard)
        raise _busy(store, holder_at_path(store, clock)) from error
    except OSError:
        close(guard)
        return None  # NFS, for one, locks only what is open for writing; the lock file decides alone there
    return guard


def _open_lock(store: Store) -> tuple[int, bool]:
    """(descriptor, whether the file is new). Raises OSError."""
    # O_NONBLOCK: a FIFO in its place must not hang us.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        with suppress(FileExistsError):
            return os.open(LOCK_NAME, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=store.dir_fd), True
        with suppress(FileNotFoundError):
            return os.open(LOCK_NAME, flags, dir_fd=store.dir_fd), False


def _refuse_special(store: Store, fd: int) -> None:
    with failing_as("examine", store.file(LOCK_NAME)):
        status = os.fstat(fd)
    # A second name could be a file that must not be written to.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise LockUnavailable(
            f"{store.file(LOCK_NAME)} is not a plain file of its own (a special file, or it has other names): remove it"
        )


def _flock(store: Store, fd: int) -> bool:
    """False when somebody holds it. Raises LockUnavailable where locks do not work."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LockUnavailable(
            f"cannot lock {store.file(LOCK_NAME)}: {describe_errno(error)}. This file system offers no flock; "
            f"storage_manager never prunes unlocked. Use a local file system, or NFS with its lock service"
        ) from error
    return True


def _unusable(store: Store, error: OSError) -> Exception:
    path = store.file(LOCK_NAME)
    if error.errno == errno.ELOOP:
        return LockUnavailable(f"{path} is a symbolic link: remove it")
    if error.errno == errno.EISDIR:
        return LockUnavailable(f"{path} is a directory: remove it")
    return StoreError("open the lock file", path, error, _remedy(store, error))


def _remedy(store: Store, error: OSError) -> str:
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    with suppress(StoreError):
        if store.status(LOCK_NAME) is not None:
            return "a run of another user may have left it: remove it, or run as the store's owner"
    return "run as the store's owner"


def _consider_leftover(store: Store, log: EventLog, clock: Clock, fd: int, stale_secs: float) -> None:
    """What a file says that we have just locked: a holder that died, or one whose lock we cannot see.

    Raises LockBusy for a lock of the previous generation, whose lock is the file's mere existence, until it
    is older than `stale_secs`.
    """
    line = _written_line(store, clock, fd)
    if not line:
        return
    path = store.file(LOCK_NAME)
    previous_pid = previous_generation_pid(line)
    if previous_pid is None:
        log.warning(
            "housekeeper.lock_stale",
            f"the last holder of {path} died without releasing it; going on",
            action="taken_over",
            **{f"holder_{key}": value for key, value in parse_holder(line, clock).items()},
        )
        return
    age_secs = age_secs_of(fd, clock)
    busy = _busy(store, {"pid": int(previous_pid), "generation": "previous", "age_secs": age_secs})
    if judge(line, age_secs, stale_secs, clock)[0] is not Holding.LEFT_OVER:
        raise busy
    log.warning(
        "housekeeper.lock_stale",
        f"{path} was left by the previous housekeeper {age_secs:.0f} s ago; taking it over",
        action="taken_over",
        **busy.fields,
    )


def _written_line(store: Store, clock: Clock, fd: int) -> bytes:
    """The lock file's line, given the moment that its creator needs to write it."""
    deadline = clock.monotonic() + LINE_WRITTEN_SECS
    with failing_as("read", store.file(LOCK_NAME)):
        while True:
            line = os.pread(fd, LARGEST_LINE, 0).strip()
            young = 0 <= age_secs_of(fd, clock) < LINE_WRITTEN_SECS
            if line or not young or clock.monotonic() >= deadline:
                return line
            clock.check()
            clock.pause(LINE_WRITTEN_SECS / 10)


def _busy(store: Store, holder: dict[str, Any]) -> LockBusy:
    return LockBusy(f"another prune holds {store.file(LOCK_NAME)}: {described(holder)}", holder)


def _is_at(store: Store, fd: int) -> bool:
    """Whether the lock file's name still leads to the file that is locked. Raises StoreError."""
    status = store.status(LOCK_NAME)
    with failing_as("examine", store.file(LOCK_NAME)):
        mine = os.fstat(fd)
    return status is not None and os.path.samestat(status, mine)

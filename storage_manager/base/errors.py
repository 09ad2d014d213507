"""What can go wrong, and the exit code of each: the one table that help, documentation and code share."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from storage_manager.base.quantity import size

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_LOCK_BUSY = 2
EXIT_USAGE = 64

EXIT_CODES = {
    EXIT_OK: "done (also: nothing to do, or cancelled at the prompt)",
    EXIT_FAILED: "failed, or the target could not be met",
    EXIT_LOCK_BUSY: "another prune holds the lock",
    EXIT_USAGE: "wrong usage",
    129: "interrupted by SIGHUP, after committing what was done",
    130: "interrupted by SIGINT, after committing what was done",
    143: "interrupted by SIGTERM, after committing what was done",
}


class StorageManagerError(Exception):
    """An error that operation can bring about: its text names the thing and the remedy."""

    exit_code = EXIT_FAILED
    event = "storage_manager.command_failed"
    lacks_evidence = False
    """Whether it is about evidence that is missing or contradicts itself: no time will mend it, somebody must look."""
    ends_cycle = False
    """Whether no other step of the same cycle may follow, or it would fail from it as well."""
    reported = False
    """True once an event has told of it, so that nobody tells it twice."""
    committed = False
    """True when metadata.json had been replaced as intended before this went wrong."""
    remedy = ""

    def __str__(self) -> str:
        return f"{super().__str__()}{self.remedy and '. ' + self.remedy}"

    def add(self, what: str) -> None:
        """Say more: what had been done by then, or what happens next."""
        self.args = (f"{super().__str__()}; {what}",)

    @property
    def fields(self) -> dict[str, object]:
        """Event fields that say more than the sentence does."""
        return {}


class UsageError(StorageManagerError):
    """The command line asks for something that makes no sense."""

    exit_code = EXIT_USAGE


class StoreMissing(StorageManagerError):
    """The storage directory does not exist, or is not a directory."""

    ends_cycle = True


class StoreError(StorageManagerError):
    """A system call on the store failed."""

    def __init__(self, action: str, name: str, error: OSError, remedy: str = "") -> None:
        self.name = name
        self.errno = error.errno
        super().__init__(f"cannot {action} {name}: {describe_errno(error)}{remedy and '; ' + remedy}")

    @property
    def fields(self) -> dict[str, object]:
        return {"file": self.name, "errno": errno_name(self.errno)}


class NotWritable(StorageManagerError):
    """Removing entries would be impossible, so nothing may be deleted."""


class MetadataCorrupt(StorageManagerError):
    """metadata.json stayed unreadable for as long as a reader has to be patient."""

    ends_cycle = True
    event = "storage_manager.metadata_corrupt"

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class MetadataTorn(MetadataCorrupt):
    """It was not whole all the time: damaged, or somebody is still writing it."""


class MetadataBusy(MetadataTorn):
    """metadata.json was written again and again, and never whole for long enough to be read."""


class ListingIncomplete(StorageManagerError):
    """The directory listing lacks files that exist: nothing that follows from it may be believed."""

    ends_cycle = True
    lacks_evidence = True
    event = "storage_manager.listing_incomplete"

    def __init__(self, path: str, count: int, example: str) -> None:
        self.path = path
        self.count = count
        self.example = example
        lacking = f"a file exists that it lacks: {example}"
        if count > 1:
            lacking = f"{count:,} files exist that it lacks, {example} among them"
        super().__init__(
            f"the directory listing of {path} is incomplete: {lacking}. Check the disk, or the server and the mount of "
            f"a network file system"
        )

    @property
    def fields(self) -> dict[str, object]:
        return {"file": self.path, "unlisted_count": self.count, "example": self.example}


class CommitContended(StorageManagerError):
    """metadata.json changed under every attempt to commit, or was never whole. Nothing is lost by it."""


class NoRoom(CommitContended):
    """Too little is free for a new metadata.json beside a client that may be writing the old one anew."""

    def __init__(self, path: str, free_bytes: int, needed_bytes: int, is_quota: bool) -> None:
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes
        self.is_quota = is_quota
        """Whether a quota, not the file system, is what is nearly used up."""
        super().__init__(
            f"{path} is not replaced while {'its owner has' if is_quota else 'there are'} only {size(free_bytes)} left "
            f"{'of a quota' if is_quota else 'on its file system'}: {size(needed_bytes)} have to be free, so that the "
            f"service can always write the file anew"
        )


class StoreGone(StorageManagerError):
    """metadata.json or the storage directory has disappeared since it was seen."""

    ends_cycle = True
    event = "storage_manager.store_gone"
    lacks_evidence = True


class LockBusy(StorageManagerError):
    """Another prune holds the lock."""

    ends_cycle = True
    exit_code = EXIT_LOCK_BUSY
    event = "storage_manager.prune.lock_busy"

    def __init__(self, message: str, holder: dict[str, object]) -> None:
        self.holder = holder
        super().__init__(message)

    @property
    def fields(self) -> dict[str, object]:
        return {f"holder_{key}": value for key, value in self.holder.items()}


class LockUnavailable(StorageManagerError):
    """This file system or lock file cannot be locked; nothing runs unlocked."""


class LockLost(StorageManagerError):
    """Somebody replaced the lock file while it was held, so another prune may be running."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP. Not an Exception, so that no handler of ordinary failures swallows it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self._is_told = False
        super().__init__(f"interrupted by {signal_name(signum)}")

    def add(self, done: str) -> None:
        """Say what had been done by then. Whoever knows first says it."""
        if not self._is_told:
            self._is_told = True
            self.args = (f"{done}; {self}",)

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


def signal_name(number: int) -> str:
    return signal.Signals(number).name


def errno_name(number: int | None) -> str | None:
    """None for an error that Python found before it asked the kernel."""
    return None if number is None else errno.errorcode.get(number, str(number))


def describe_errno(error: OSError) -> str:
    return str(error) if error.errno is None else f"{error.strerror or error} ({errno_name(error.errno)})"


def described(error: Exception) -> str:
    """What went wrong; of a system call, with the name of its errno."""
    return describe_errno(error) if isinstance(error, OSError) else str(error) or type(error).__name__


@contextmanager
def failing_as(action: str, name: str) -> Iterator[None]:
    """Turn an OSError inside into a StoreError that says what was being done to which file."""
    try:
        yield
    except OSError as error:
        raise StoreError(action, name, error) from error

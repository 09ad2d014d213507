"""What is in a store: the files of one directory listing, matched with the entries of metadata.json."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from storage_manager.base.errors import ListingIncomplete, describe_errno, failing_as
from storage_manager.base.times import from_timestamp
from storage_manager.store.directory import Store
from storage_manager.store.entry import entry_visitor
from storage_manager.store.names import ASIDE_PREFIX, GUID_LENGTH, is_blob_name, is_commit_file
from storage_manager.store.snapshot import (
    CORRUPT,
    IN_FLIGHT,
    NOT_A_FILE,
    ORPHAN,
    UNREADABLE,
    Anomaly,
    Session,
    Snapshot,
)

# A blob without an entry may be a save under way; the client writes the entry within seconds of the blob, so
# ten minutes leave room for a client that is starved or stopped.
IN_FLIGHT_AGE = timedelta(minutes=10)

# A slow network file system needs milliseconds for each; whoever watches the loop waits for seconds.
PROGRESS_FILES = 1000


class Inventory:
    """What is in a store: the blobs of one directory listing, matched with the entries as they are parsed.

    The bytes of metadata.json must have been read before the listing: an entry read first has its blob on
    disk already, so a save that is under way never looks like a dangling entry.
    """

    def __init__(self, store: Store, progress: Callable[[int], None] = lambda steps: None) -> None:
        """List the directory. `progress` is called for every PROGRESS_FILES files looked at, with the number of those
        listed since. Raises StoreError.
        """
        self._store = store
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._odd: dict[str, str | OSError] = {}
        self._sessions: list[Session] = []
        self._formats: dict[str, str] = {}
        # key -> (how many sessions were found before, the session without a blob or what is wrong with the entry).
        self._others: dict[str, tuple[int, Session | str]] = {}
        self._marks = array("q")
        sizes, add_mark = self._sizes, self._marks.append
        type_bits, regular = 0o170000, stat.S_IFREG  # stat.S_ISREG without its call, a million times over
        with failing_as("list", store.path), os.scandir(store.dir_fd) as listing:
            for number, item in enumerate(listing):
                if number % PROGRESS_FILES == 0:
                    progress(min(number, PROGRESS_FILES))
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._odd[item.name] = error
                    continue
                if status.st_mode & type_bits == regular:
                    sizes[item.name] = status.st_size
                    add_mark(hash((item.name, status.st_ino, status.st_size, status.st_mtime_ns)))
                else:
                    self._odd[item.name] = _file_type(status.st_mode)

    def visitor(self) -> Callable[[str, Any], None]:
        """What takes each member of metadata.json: a session takes its blob out of the listing."""
        return entry_visitor(self._sizes.pop, self._sessions.append, self._add_other, self._formats)

    def _add_other(self, key: str, what: Session | str) -> None:
        self._others[key] = (len(self._sessions), what)

    def snapshot(self, now: datetime) -> Snapshot:
        """The result, once every member has been visited. Raises ListingIncomplete, StoreError."""
        if len(self._formats) > 1 or (self._others and any(session.guid in self._others for session in self._sessions)):
            self._settle_repeats()
        self._look_up()
        anomalies = [
            Anomaly(UNREADABLE, name, 0, describe_errno(what))
            if isinstance(what, OSError)
            else Anomaly(NOT_A_FILE, name, 0, f"it is a {what}")
            for name, what in self._odd.items()
            if is_blob_name(name)
        ]
        odd_guids = {anomaly.name[:GUID_LENGTH] for anomaly in anomalies}
        guids = set()
        for number, (name, size_bytes) in enumerate(self._sizes.items()):  # what no session has taken
            if number % PROGRESS_FILES == 0:
                self._progress(0)
            if is_blob_name(name) is None:
                continue
            guid = name[:GUID_LENGTH]
            if guid not in self._others:
                anomalies.extend(self._orphan(name, now))
                continue
            _, what = self._others[guid]
            # An entry whose blob has another extension is not dangling: removing it would orphan the blob.
            detail = what if isinstance(what, str) else f"its entry says the format is {what.format}"
            anomalies.append(Anomaly(CORRUPT, name, size_bytes, detail))
            guids.add(guid)
        dangling = []
        for key, (_, what) in self._others.items():
            if key in guids:
                continue
            if isinstance(what, str):
                anomalies.append(Anomaly(CORRUPT, key, 0, what))
            elif key not in odd_guids:  # otherwise its blob is there in some way
                dangling.append(what._replace(size_bytes=0))
        self._sessions.sort()
        dangling.sort()
        leftovers = {name: size for name, size in self._sizes.items() if is_commit_file(name)}
        torn = sorted(name for name in leftovers if name.startswith(ASIDE_PREFIX))
        leftovers.update((name, 0) for name in self._odd if is_commit_file(name))
        return Snapshot(self._sessions, dangling, anomalies, torn, leftovers, self._marks)

    def _look_up(self) -> None:
        """Look each blob up that the listing lacks: absence from a listing is not absence, only ENOENT is.

        A listing can be short without an error: NFS, FUSE, a failing disk. Raises ListingIncomplete.
        """
        found = []
        for number, (_, what) in enumerate(self._others.values()):
            if number % PROGRESS_FILES == 0:
                self._progress(0)
            if isinstance(what, str) or what.blob_name in self._odd:
                continue
            try:
                self._store.stat(what.blob_name)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._odd[what.blob_name] = error
                continue
            found.append(what.blob_name)
        if found:
            raise ListingIncomplete(self._store.path, len(found), found[0])

    def _settle_repeats(self) -> None:
        """As in every JSON reader, the last of several members with one key counts.

        A member that a later one overrides may have taken a blob. It is given back, for the one that counts to take.
        """
        last = {session.guid: index for index, session in enumerate(self._sessions)}
        counting = []
        for index, session in enumerate(self._sessions):
            place, _ = self._others.get(session.guid, (0, ""))
            if last[session.guid] == index and place <= index:
                self._others.pop(session.guid, None)
                counting.append(session)
            else:
                self._sizes[session.blob_name] = session.size_bytes
        for guid in self._others.keys() & last.keys():
            _, what = self._others[guid]
            if not isinstance(what, str) and what.blob_name in self._sizes:
                del self._others[guid]
                counting.append(what._replace(size_bytes=self._sizes.pop(what.blob_name)))
        self._sessions[:] = counting

    def _orphan(self, name: str, now: datetime) -> Iterator[Anomaly]:
        status = self._store.status(name)
        if status is None:
            return
        modified_at = from_timestamp(status.st_mtime)
        if now - modified_at < IN_FLIGHT_AGE:
            is_ahead = modified_at - now > IN_FLIGHT_AGE
            detail = "no entry, dated in the future" if is_ahead else "no entry yet, younger than 10 minutes"
            yield Anomaly(IN_FLIGHT, name, status.st_size, detail, modified_at)
        else:
            yield Anomaly(ORPHAN, name, status.st_size, "no entry", modified_at)


def mark(name: str, status: os.stat_result) -> int:
    """What tells whether a name still leads to the same file, unchanged: 8 bytes of each, for a million of them."""
    return hash((name, status.st_ino, status.st_size, status.st_mtime_ns))


def _file_type(mode: int) -> str:
    names = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")

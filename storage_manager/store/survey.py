"""One consistent look at a store, and the events about what is odd in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from stat import S_ISREG
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import SILENCE_SECS, Clock, Patience
from storage_manager.base.errors import ListingIncomplete
from storage_manager.base.log import EventLog
from storage_manager.base.text import nearest, printable
from storage_manager.base.times import utc_text
from storage_manager.store.directory import Store, open_store, stores_below
from storage_manager.store.document import visit_members
from storage_manager.store.inventory import Inventory
from storage_manager.store.names import METADATA_NAME, is_blob_name
from storage_manager.store.reading import READ_PATIENCE_SECS, Reading, read_stable
from storage_manager.store.snapshot import ANOMALY_NOUNS, DANGLING, FUTURE, IN_FLIGHT, Snapshot

# A report names this many of a kind; thousands of orphans, found again each hour, must not fill the log.
EXAMPLES = 5

# So many groups are named to somebody who asks for one that does not exist.
GROUPS = 20

# A client may save a session anew between the listing and the look at its name. Not three times in a row.
LISTINGS = 3


class Totals(NamedTuple):
    """What a look at a store came to, before anything was done about it."""

    session_count: int
    usage_bytes: int
    anomaly_totals: dict[str, tuple[int, int]]
    """kind -> (count, bytes), for the kinds that occur."""
    suggested_dirs: Sequence[str]
    """Stores right below a directory that holds nothing: probably the wrong one is configured."""


def survey(store: Store, clock: Clock, log: EventLog) -> tuple[Snapshot, Optional[Reading]]:
    """One consistent look at a store: its snapshot, and the metadata it came from (None: there is none).

    Takes no lock. The caller closes the reading. Raises MetadataCorrupt, ListingIncomplete, StoreError, Interrupted.
    """
    with clock.doing("looking at the store"):
        for _ in range(LISTINGS - 1):
            with suppress(ListingIncomplete):
                return _look(store, clock, log)
        return _look(store, clock, log)


def _look(store: Store, clock: Clock, log: EventLog) -> tuple[Snapshot, Optional[Reading]]:
    def list_files() -> Inventory:
        with clock.doing("listing the files"):
            return Inventory(store, clock.progress)

    def take_inventory(data: bytes) -> Inventory:
        inventory = list_files()  # after the bytes were read, and anew at each attempt
        with clock.doing("reading metadata.json", len(data), quantity.size):
            visit_members(data, inventory.visitor(), clock.progress)
        return inventory

    found = read_stable(store, _ReaderPatience(clock, store, log), take_inventory)
    if found is None:
        now = clock.now()
        return list_files().snapshot(now).seen_at(now), None
    reading, inventory = found
    try:
        now = clock.now()
        return inventory.snapshot(now).seen_at(now), reading
    except BaseException:
        reading.close()
        raise


class _ReaderPatience(Patience):
    """Patience for a command that has changed nothing yet: asked to stop, it stops at once. Says what it waits for."""

    def __init__(self, clock: Clock, store: Store, log: EventLog) -> None:
        super().__init__(clock, READ_PATIENCE_SECS, 0.0)
        self._file = store.file(METADATA_NAME)
        self._log = log
        self._silent_until: Optional[float] = clock.monotonic() + SILENCE_SECS

    def exhausted(self) -> bool:
        self._clock.check()
        return super().exhausted()

    def pause(self, secs: float) -> None:
        if self._silent_until is not None and self._clock.monotonic() >= self._silent_until:
            self._silent_until = None
            self._log.warning(
                "storage_manager.metadata_torn",
                f"{self._file} is not whole: somebody is writing it, or it is damaged. Waiting for up to "
                f"{READ_PATIENCE_SECS:g} seconds",
                file=self._file,
            )
        super().pause(secs)


def take_snapshot(
    storage_dir: str, clock: Clock, log: EventLog, told: Optional[Totals] = None
) -> tuple[Snapshot, Totals]:
    """What is in a store, for a command that only looks. Reports anomalies, but for those told of before."""
    with open_store(storage_dir) as store:
        snapshot, reading = survey(store, clock, log)
        if reading is not None:
            reading.close()
    return snapshot, report_findings(snapshot, storage_dir, log, told)


def report_findings(snapshot: Snapshot, storage_dir: str, log: EventLog, told: Optional[Totals] = None) -> Totals:
    """Events about what is odd in a store: one for each kind of anomaly, and one for a store in the wrong place.

    Nothing is said again of what was `told` by an earlier look of the same cycle.
    """
    totals = snapshot.anomaly_totals()
    for kind, (count, size_bytes) in totals.items():
        if told is not None and told.anomaly_totals.get(kind) == (count, size_bytes):
            continue
        examples = examples_of(kind, snapshot)
        # A save or a delete under way is everyday life; the rest wants somebody's attention.
        emit = log.info if kind in (IN_FLIGHT, DANGLING) else log.warning
        emit(
            "storage_manager.anomaly",
            f"{quantity.counted(count, ANOMALY_NOUNS[kind])}, {quantity.size(size_bytes)}: {', '.join(examples[:2])}"
            + (", ..." if count > 2 else ""),
            kind=kind,
            count=count,
            size_bytes=size_bytes,
            examples=examples,
            storage_dir=storage_dir,
        )
    # An empty metadata.json says nothing: the client makes one wherever it is started.
    is_empty = not (snapshot.sessions or snapshot.dangling or snapshot.anomalies)
    below = stores_below(storage_dir)[:EXAMPLES] if is_empty else []
    if below and (told is None or told.suggested_dirs != below):
        report_suspect(storage_dir, below, log)
    return Totals(len(snapshot.sessions), snapshot.usage_bytes, totals, below)


def examples_of(kind: str, snapshot: Snapshot) -> list[str]:
    """The first anomalies of a kind, as people are shown them."""
    if kind == DANGLING:
        return [session.guid for session in snapshot.dangling[:EXAMPLES]]
    if kind == FUTURE:
        return [f"{session.guid} (dated {utc_text(session.created_at)})" for session in snapshot.future[:EXAMPLES]]
    found = islice((anomaly for anomaly in snapshot.anomalies if anomaly.kind == kind), EXAMPLES)
    return [f"{printable(anomaly.name, 200)} ({anomaly.detail})" for anomaly in found]


def report_unknown_group(snapshot: Snapshot, group: Optional[str], storage_dir: str, log: EventLog) -> None:
    """The event about a group that nobody has: a slip of the keyboard must not look like an empty group."""
    if group is None:
        return
    known = {session.group for part in (snapshot.sessions, snapshot.dangling) for session in part}
    if group in known:
        return
    names = sorted(name for name in known if name is not None)
    shown = ", ".join(printable(name, 60) for name in names[:GROUPS])
    there_are = f"there are {shown}{', ...' if len(names) > GROUPS else ''}" if names else "no session has a group"
    meant = nearest(group, names)
    suggested = "" if meant is None else f"did you mean {printable(meant, 60)}? "
    log.warning(
        "storage_manager.unknown_group",
        f"no session is in group {printable(group, 80)}; {suggested}{there_are}",
        group=group,
        groups=names[:GROUPS],
        storage_dir=storage_dir,
    )


class Allocation(NamedTuple):
    """What blobs take on the disk, as opposed to their sizes."""

    allocated_bytes: int
    linked_count: int
    """Blobs with another hard link: deleting them frees nothing."""


def allocation(storage_dir: str, names: Collection[str], clock: Clock) -> Allocation:
    """Of the blobs of these names, as far as they can be examined. Raises StoreMissing, StoreError."""
    blocks = linked_count = 0
    with open_store(storage_dir) as store, clock.doing("examining the blobs", len(names)):
        for name in filter(is_blob_name, names):  # an anomaly's name may be a key, which may lead anywhere
            clock.progress(1)
            with suppress(OSError):  # gone by now, or reported as unreadable
                status = store.stat(name)
                if S_ISREG(status.st_mode):
                    blocks += status.st_blocks
                    linked_count += status.st_nlink > 1
    return Allocation(512 * blocks, linked_count)


def report_suspect(storage_dir: str, suggested_dirs: Sequence[str], log: EventLog) -> None:
    """The event about a configured directory that is empty and has a store right below it."""
    log.warning(
        "storage_manager.storage_suspect",
        f"{storage_dir} is empty, and there is a store right below it: did you mean --storage-dir {suggested_dirs[0]}?",
        storage_dir=storage_dir,
        suggested_dirs=suggested_dirs,
    )

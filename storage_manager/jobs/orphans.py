"""Blobs without entries: whether one is an orphan still, and the entries that would make sessions of them again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Optional

from storage_manager.base.clock import Clock, Patience
from storage_manager.store.directory import Store
from storage_manager.store.entry import blob_name
from storage_manager.store.names import GUID_LENGTH, METADATA_NAME, is_format
from storage_manager.store.reading import READ_PATIENCE_SECS, Reading, is_named, read_document
from storage_manager.store.snapshot import IN_FLIGHT, ORPHAN, UNREADABLE, Anomaly, Session


class OrphanGuard:
    """Tells, right before the deletion, whether an orphan is one still.

    Between the answer and the deletion a client could give it an entry after all: one that was stopped in a save for
    as long as the orphan is old, and goes on within just these microseconds.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        reading: Optional[Reading],
        orphans: Iterable[Session],
        waiting: Collection[str],
    ) -> None:
        """`reading` is what the orphans had no entry in; None where there was no metadata.json. The entries of those
        that are `waiting` may be put back yet.
        """
        self._store = store
        self._clock = clock
        self._status = reading.status if reading is not None else None
        self._orphans = {orphan.blob_name: orphan for orphan in orphans}
        self._guids = {orphan.guid for orphan in self._orphans.values()}
        self._waiting = waiting
        self._taken: set[str] = set()

    def is_orphan(self, orphan: Session) -> bool:
        """Whether nobody has given it an entry, or will put one back. Raises MetadataCorrupt, StoreError."""
        if self._status is None or not is_named(self._store, METADATA_NAME, self._status):
            self._look_again()
        return orphan.guid not in self._taken and orphan.guid not in self._waiting

    def _look_again(self) -> None:
        found = read_document(self._store, Patience(self._clock, READ_PATIENCE_SECS, 0.0))
        if found is None:
            self._status, self._taken = None, set()
            return
        reading, document = found
        with reading:
            self._status = reading.status
            members = {key: index for index, key in enumerate(document.keys) if key in self._guids}
            self._taken = {
                key for key, index in members.items() if not self._is_about_another(key, document.value(index))
            }

    def _is_about_another(self, guid: str, value: Any) -> bool:
        """Whether an entry is about a blob of that guid that is no orphan of ours, and is there."""
        name = blob_name(guid, value)
        return name is not None and name not in self._orphans and self._store.status(name) is not None


class Adoptable(NamedTuple):
    """Which orphans can have entries of their own."""

    orphans: Sequence[Session]
    """Oldest first, as `left`."""
    left: Sequence[Anomaly]
    """Those that no entry could name, or whose guid is taken by another blob. `detail` says which."""


def adoptable(anomalies: Iterable[Anomaly], taken: Iterable[str]) -> Adoptable:
    """`taken` are the keys that metadata.json has already."""
    blobs = [anomaly for anomaly in anomalies if anomaly.kind in (ORPHAN, IN_FLIGHT)]
    # A guid can have one entry, and which of several blobs it is about, nobody knows.
    count = Counter(anomaly.name[:GUID_LENGTH] for anomaly in blobs)
    keys = set(taken)
    chosen, left = [], []
    for anomaly in blobs:
        guid = anomaly.name[:GUID_LENGTH]
        if anomaly.kind != ORPHAN:
            continue
        if count[guid] > 1:
            left.append(anomaly._replace(detail="several blobs have this guid"))
        elif guid in keys:
            left.append(anomaly._replace(detail="this guid has an entry already"))
        elif not is_format(anomaly.name[GUID_LENGTH + 1 :]):
            left.append(anomaly._replace(detail="no entry can have this name"))
        else:
            chosen.append(anomaly.as_session())
    return Adoptable(sorted(chosen), sorted(left, key=Anomaly.as_session))


def entries_text(orphans: Iterable[Session], group: str) -> bytes:
    """A metadata.json with an entry for each orphan, as the client would write it."""
    entries = {
        orphan.guid: {
            "format": orphan.format,
            "size": orphan.size_bytes,
            "created_at": orphan.created_at.isoformat(),
            "group": group,
        }
        for orphan in orphans
    }
    return json.dumps(entries, indent=2).encode()


class Missed(NamedTuple):
    """What is known of the blobs that no entry is about, those of saves under way included."""

    guids: set[str]
    newest: Optional[datetime]
    """When the last of them was written; None when there is none."""


def missed(anomalies: Iterable[Anomaly]) -> Missed:
    """Of a blob that cannot be examined, nobody knows when it was written: it may be the newest."""
    blobs = [anomaly for anomaly in anomalies if anomaly.kind in (ORPHAN, IN_FLIGHT, UNREADABLE)]
    times = [anomaly.modified_at or datetime.max for anomaly in blobs]
    return Missed({anomaly.name[:GUID_LENGTH] for anomaly in blobs}, max(times, default=None))

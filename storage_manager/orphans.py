"""Blobs without entries: whether one is an orphan still, and the entries that would make sessions of them again."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

from storage_manager.clock import Clock, Patience
from storage_manager.document import parse
from storage_manager.entry import GUID_LENGTH, from_timestamp, is_format
from storage_manager.errors import StoreError
from storage_manager.metadata import READ_PATIENCE_SECS, Reading, is_named, read_stable
from storage_manager.model import IN_FLIGHT, ORPHAN, Anomaly, Session
from storage_manager.store import METADATA_NAME, Store

# How often to look whether a client has given an orphan its entry after all. Only one that was stopped for as long as
# the orphan is old could do so; reading a large file again for each deletion would cost more than it is worth.
RECHECK_SECS = 1.0


class OrphanGuard:
    """Tells, right before the deletion, whether an orphan is one still."""

    def __init__(self, store: Store, clock: Clock, reading: Optional[Reading], orphans: Iterable[Session]) -> None:
        """`reading` is what the orphans had no entry in; None where there was no metadata.json."""
        self._store = store
        self._clock = clock
        self._status = reading.status if reading is not None else None
        self._guids = {orphan.guid for orphan in orphans}
        self._entries: set[str] = set()
        self._looked_at = clock.monotonic()

    def is_orphan(self, orphan: Session) -> bool:
        """Whether nobody has given it an entry, or written to it. Raises MetadataCorrupt, StoreError."""
        now = self._clock.monotonic()
        if now - self._looked_at >= RECHECK_SECS:
            self._looked_at = now
            self._look_again()
        return orphan.blob_name not in self._entries and self._is_untouched(orphan)

    def _look_again(self) -> None:
        if self._status is not None and is_named(self._store, METADATA_NAME, self._status):
            return
        found = read_stable(self._store, Patience(self._clock, READ_PATIENCE_SECS, 0.0), parse)
        self._status, self._entries = None, set()
        if found is None:
            return
        reading, document = found
        with reading:
            self._status = reading.status
            for index, key in enumerate(document.keys):
                if key in self._guids:
                    value = document.value(index)
                    extension = value.get("format") if isinstance(value, dict) else None
                    self._entries.add(f"{key}.{extension}")

    def _is_untouched(self, orphan: Session) -> bool:
        try:
            status = os.stat(orphan.blob_name, dir_fd=self._store.dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return True  # whoever deletes it finds out
        except OSError as error:
            raise StoreError("examine", self._store.file(orphan.blob_name), error) from error
        return from_timestamp(status.st_mtime) == orphan.created_at


class Adoptable(NamedTuple):
    """Which orphans can have entries of their own."""

    orphans: Sequence[Session]
    """Oldest first."""
    left: Sequence[Anomaly]
    """Those that no entry could name, or whose guid is taken by another blob."""


def adoptable(anomalies: Iterable[Anomaly], taken: Iterable[str]) -> Adoptable:
    """`taken` are the keys that metadata.json has already."""
    orphans = [anomaly for anomaly in anomalies if anomaly.kind == ORPHAN]
    # A guid can have one entry, and which of several blobs it is about, nobody knows.
    count = Counter(anomaly.name[:GUID_LENGTH] for anomaly in orphans)
    keys = set(taken)
    chosen, left = [], []
    for anomaly in orphans:
        guid = anomaly.name[:GUID_LENGTH]
        if count[guid] == 1 and guid not in keys and is_format(anomaly.name[GUID_LENGTH + 1 :]):
            chosen.append(anomaly.as_session())
        else:
            left.append(anomaly)
    return Adoptable(sorted(chosen), left)


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


def without_entry(anomalies: Iterable[Anomaly]) -> set[str]:
    """The guids of all blobs that no entry is about, those of saves under way included."""
    return {anomaly.name[:GUID_LENGTH] for anomaly in anomalies if anomaly.kind in (ORPHAN, IN_FLIGHT)}

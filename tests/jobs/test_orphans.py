"""Which blobs without entries can have one, and whether one is an orphan still when it is about to go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from stores import make_store, read_entries, write_entries

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.base.times import from_timestamp
from storage_manager.jobs.orphans import OrphanGuard, adoptable, entries_text, missed
from storage_manager.store.directory import Store, open_store
from storage_manager.store.snapshot import IN_FLIGHT, NOT_A_FILE, ORPHAN, UNREADABLE, Anomaly, Session
from storage_manager.store.survey import survey

LOG = EventLog(build_logger(None, True, 10))
GUIDS = [f"{digit * 8}-aaaa-4bbb-8ccc-dddddddddddd" for digit in "123"]
THEN = datetime(2026, 1, 2, 3, 4, 5, 678)


def blob(guid: str, extension: str = "json", kind: str = ORPHAN, when: datetime | None = THEN) -> Anomaly:
    return Anomaly(kind, f"{guid}.{extension}", 7, "", when)


def adopted(*anomalies: Anomaly, taken: tuple[str, ...] = ()) -> list[str]:
    found = adoptable(anomalies, taken)
    orphans = sum(anomaly.kind == ORPHAN for anomaly in anomalies)
    assert len(found.orphans) + len(found.left) == orphans
    return [orphan.blob_name for orphan in found.orphans]


def test_the_oldest_comes_first() -> None:
    assert adopted(blob(GUIDS[0]), blob(GUIDS[1], when=datetime(2025, 1, 1))) == [
        f"{GUIDS[1]}.json",
        f"{GUIDS[0]}.json",
    ]


@pytest.mark.parametrize("kind", [ORPHAN, IN_FLIGHT])
def test_of_several_blobs_with_one_guid_none_is_chosen(kind: str) -> None:
    assert adopted(blob(GUIDS[0]), blob(GUIDS[0], "md", kind), blob(GUIDS[1])) == [f"{GUIDS[1]}.json"]


def test_a_guid_that_has_an_entry_gets_no_other() -> None:
    assert adopted(blob(GUIDS[0]), blob(GUIDS[1]), taken=(GUIDS[0], "odd")) == [f"{GUIDS[1]}.json"]


@pytest.mark.parametrize("extension", ["JSON", "tar.gz", "x" * 33])
def test_a_name_that_no_entry_could_have_is_left(extension: str) -> None:
    assert adopted(blob(GUIDS[0], extension)) == []


@pytest.mark.parametrize("kind", [IN_FLIGHT, NOT_A_FILE, UNREADABLE])
def test_only_orphans_are_adopted(kind: str) -> None:
    assert adopted(blob(GUIDS[0], kind=kind)) == []


def test_entries_are_written_as_the_client_writes_them() -> None:
    text = entries_text([Session(THEN, GUIDS[0], "json", None, None, 7)], 'a "b"\u1234')
    entry = {"format": "json", "size": 7, "created_at": "2026-01-02T03:04:05.000678", "group": 'a "b"\u1234'}
    assert text.decode() == json.dumps({GUIDS[0]: entry}, indent=2)


def test_a_blob_that_cannot_be_examined_may_be_the_newest() -> None:
    assert missed([]) == (set(), None)
    assert missed([blob(GUIDS[0]), blob(GUIDS[1], kind=NOT_A_FILE)]) == ({GUIDS[0]}, THEN)
    assert missed([blob(GUIDS[0]), blob(GUIDS[1], kind=UNREADABLE, when=None)]) == ({*GUIDS[:2]}, datetime.max)


# The guard


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    make_store(storage, 1)
    for guid in GUIDS:
        (storage / f"{guid}.json").write_bytes(b"1234567")
        os.utime(storage / f"{guid}.json", (1000, 1000))
    with open_store(str(storage)) as store:
        yield store


def guarded(store: Store) -> tuple[OrphanGuard, list[Session]]:
    orphans = [Session(from_timestamp(1000), guid, "json", None, None, 7) for guid in GUIDS]
    _, reading = survey(store, Clock(), LOG)
    if reading is not None:
        reading.close()
    return OrphanGuard(store, Clock(), reading, orphans, ()), orphans


def test_an_orphan_that_nobody_touches_stays_one(store: Store) -> None:
    guard, orphans = guarded(store)
    assert all(guard.is_orphan(orphan) for orphan in orphans)


@pytest.mark.parametrize("entry", [{"format": "json"}, {"format": "md"}, {"format": "../x"}, {"format": 7}, [], None])
def test_one_with_an_entry_is_none(storage: Path, store: Store, entry: object) -> None:
    """Whatever the entry is: it may be mended."""
    guard, orphans = guarded(store)
    write_entries(storage, {**read_entries(storage), GUIDS[0]: entry})
    assert [guard.is_orphan(orphan) for orphan in orphans] == [False, True, True]


def test_an_entry_of_another_blob_with_the_same_guid_is_no_entry_of_this_one(storage: Path, store: Store) -> None:
    guard, orphans = guarded(store)
    (storage / f"{GUIDS[0]}.md").write_bytes(b"")
    write_entries(storage, {**read_entries(storage), GUIDS[0]: {"format": "md"}})
    assert guard.is_orphan(orphans[0])


def test_metadata_that_comes_later_is_read(storage: Path, store: Store) -> None:
    (storage / "metadata.json").unlink()
    guard, orphans = guarded(store)
    assert guard.is_orphan(orphans[0])
    write_entries(storage, {GUIDS[0]: {"format": "json"}})
    assert not guard.is_orphan(orphans[0])
    (storage / "metadata.json").unlink()
    assert guard.is_orphan(orphans[0])

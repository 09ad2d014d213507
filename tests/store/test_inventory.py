"""What is in a directory: sessions, dangling and corrupt entries, orphans, and what is no blob at all."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stores import make_store, read_entries, write_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import StoreError, StoreMissing
from storage_manager.store.directory import Store, open_store, stores_below
from storage_manager.store.document import visit_members
from storage_manager.store.inventory import Inventory
from storage_manager.store.snapshot import CORRUPT, IN_FLIGHT, NOT_A_FILE, ORPHAN, UNREADABLE, Snapshot

GUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


def scan(store: Store, now: datetime | None = None) -> Snapshot:
    metadata = Path(store.path) / "metadata.json"
    data = metadata.read_bytes() if metadata.exists() else b"{}"
    inventory = Inventory(store)
    visit_members(data, inventory.visitor())
    return inventory.snapshot(now or Clock().now())


def kinds(snapshot: Snapshot) -> list[tuple[str, str, int]]:
    return sorted((anomaly.kind, anomaly.name, anomaly.size_bytes) for anomaly in snapshot.anomalies)


def test_healthy_sessions_come_oldest_first_with_their_real_size(storage: Path, store: Store) -> None:
    guids = make_store(storage, 5, size=700, group="g")
    entries = read_entries(storage)
    write_entries(storage, dict(reversed(list(entries.items()))))
    (storage / f"{guids[2]}.json").write_bytes(b"x" * 33)
    snapshot = scan(store)
    assert [session.guid for session in snapshot.sessions] == guids
    assert [session.size_bytes for session in snapshot.sessions] == [700, 700, 33, 700, 700]
    assert {session.declared_bytes for session in snapshot.sessions} == {700}
    assert {session.group for session in snapshot.sessions} == {"g"}
    assert (snapshot.dangling, snapshot.anomalies) == ([], [])
    assert snapshot.usage_bytes == 4 * 700 + 33


def test_sessions_of_one_moment_are_ordered_by_guid(storage: Path, store: Store) -> None:
    guids = make_store(storage, 6)
    entries = read_entries(storage)
    for entry in entries.values():
        entry["created_at"] = "2026-01-01T00:00:00"
    write_entries(storage, entries)
    assert [session.guid for session in scan(store).sessions] == sorted(guids)


def test_an_entry_without_a_blob_is_dangling(storage: Path, store: Store) -> None:
    guids = make_store(storage, 3)
    (storage / f"{guids[1]}.json").unlink()
    snapshot = scan(store)
    assert [(session.guid, session.size_bytes) for session in snapshot.dangling] == [(guids[1], 0)]
    assert [session.guid for session in snapshot.sessions] == [guids[0], guids[2]]
    assert snapshot.anomalies == []


@pytest.mark.parametrize(("age_secs", "kind"), [(0, IN_FLIGHT), (590, IN_FLIGHT), (610, ORPHAN), (10**8, ORPHAN)])
def test_a_blob_without_an_entry_is_in_flight_for_ten_minutes(
    storage: Path, store: Store, age_secs: int, kind: str
) -> None:
    path = storage / f"{GUID}.json"
    path.write_bytes(b"12345")
    moment = time.time() - age_secs
    os.utime(path, (moment, moment))
    assert kinds(scan(store)) == [(kind, path.name, 5)]


def test_a_blob_from_the_future_is_in_flight(storage: Path, store: Store) -> None:
    path = storage / f"{GUID}.json"
    path.touch()
    assert kinds(scan(store, Clock().now() - timedelta(days=1))) == [(IN_FLIGHT, path.name, 0)]


def test_an_orphan_that_vanishes_is_no_anomaly(storage: Path, store: Store) -> None:
    path = storage / f"{GUID}.json"
    path.touch()
    inventory = Inventory(store)
    path.unlink()
    assert inventory.snapshot(Clock().now()).anomalies == []


def test_the_blob_of_a_corrupt_entry_is_told_with_it(storage: Path, store: Store) -> None:
    guids = make_store(storage, 2, size=10)
    entries: dict[str, Any] = read_entries(storage)
    entries[guids[0]]["created_at"] = "never"
    entries["no guid"] = 1
    write_entries(storage, entries)
    snapshot = scan(store)
    assert kinds(snapshot) == [(CORRUPT, f"{guids[0]}.json", 10), (CORRUPT, "no guid", 0)]
    assert [session.guid for session in snapshot.sessions] == guids[1:]
    assert snapshot.usage_bytes == 20


def test_a_blob_with_another_extension_than_its_entry_says_is_corrupt_not_dangling(storage: Path, store: Store) -> None:
    guids = make_store(storage, 1, size=10)
    (storage / f"{guids[0]}.json").rename(storage / f"{guids[0]}.png")
    snapshot = scan(store)
    assert kinds(snapshot) == [(CORRUPT, f"{guids[0]}.png", 10)]
    assert snapshot.dangling == [] and snapshot.sessions == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_what_is_not_a_regular_file_is_neither_a_session_nor_dangling(storage: Path, store: Store, make: Any) -> None:
    guids = make_store(storage, 1)
    (storage / f"{guids[0]}.json").unlink()
    make(storage / f"{guids[0]}.json")
    snapshot = scan(store)
    assert kinds(snapshot) == [(NOT_A_FILE, f"{guids[0]}.json", 0)]
    assert snapshot.dangling == [] and snapshot.sessions == []


def test_files_that_are_not_named_like_blobs_are_not_counted(storage: Path, store: Store) -> None:
    for name in ("notes.txt", ".metadata.json.tmp", ".prune_size.lock", GUID, f"x{GUID}.json", "metadata.json.bak"):
        (storage / name).write_bytes(b"z" * 100)
    (storage / "sessions").mkdir()
    snapshot = scan(store)
    assert snapshot.usage_bytes == 0 and snapshot.anomalies == []


def test_a_blob_that_cannot_be_examined_is_reported(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 2)

    class Item:
        def __init__(self, item: os.DirEntry[str]) -> None:
            self.name = item.name
            self._item = item

        def stat(self, follow_symlinks: bool) -> os.stat_result:
            if self.name == f"{guids[0]}.json":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._item.stat(follow_symlinks=follow_symlinks)

    class Listing:
        def __init__(self, where: Any) -> None:
            self._real = real(where)

        def __enter__(self) -> Iterator[Item]:
            return map(Item, self._real)

        def __exit__(self, *exc: object) -> None:
            self._real.close()

    real = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Listing)
        snapshot = scan(store)
    assert kinds(snapshot) == [(UNREADABLE, f"{guids[0]}.json", 0)]
    assert [session.guid for session in snapshot.sessions] == guids[1:]
    assert snapshot.dangling == [], "its entry must not be swept away"


def entry(created: str, extension: str = "json") -> str:
    return f'{{"format": "{extension}", "created_at": "{created}"}}'


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([entry("2026-01-01T00:00:00"), entry("2026-02-02T00:00:00")], "2026-02-02"),
        ([entry("2026-01-01T00:00:00"), "7"], "corrupt"),
        (["7", entry("2026-01-01T00:00:00")], "2026-01-01"),
        ([entry("2026-01-01T00:00:00", "png"), entry("2026-02-02T00:00:00")], "2026-02-02"),
        ([entry("2026-02-02T00:00:00"), entry("2026-01-01T00:00:00", "png")], "corrupt"),
        ([entry("2026-01-01T00:00:00"), "7", entry("2026-03-03T00:00:00")], "2026-03-03"),
        ([entry("2026-01-01T00:00:00"), entry("2026-02-02T00:00:00"), "7"], "corrupt"),
    ],
)
def test_of_several_members_with_one_key_the_last_counts(
    storage: Path, store: Store, members: list[str], expected: str
) -> None:
    (storage / f"{GUID}.json").write_bytes(b"x" * 50)
    (storage / "metadata.json").write_text("{" + ",".join(f'"{GUID}": {member}' for member in members) + "}")
    snapshot = scan(store)
    assert snapshot.dangling == []
    assert snapshot.usage_bytes == 50
    if expected == "corrupt":
        assert snapshot.sessions == [] and [a.kind for a in snapshot.anomalies] == [CORRUPT]
    else:
        assert [str(session.created_at.date()) for session in snapshot.sessions] == [expected]
        assert snapshot.anomalies == []


def test_an_empty_directory_is_an_empty_store(store: Store) -> None:
    snapshot = scan(store)
    assert (list(snapshot.sessions), list(snapshot.dangling), list(snapshot.anomalies)) == ([], [], [])
    assert snapshot.usage_bytes == 0


def test_a_directory_that_cannot_be_listed_is_an_error(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(where: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StoreError) as caught:
        Inventory(store)
    assert caught.value.fields == {"file": str(storage), "errno": "EIO"}


def test_a_blob_is_removed_from_the_store_alone(storage: Path, store: Store, tmp_path: Path) -> None:
    make_store(storage, 1)
    (blob,) = storage.glob("*-*.json")
    (tmp_path / "cwd.json").touch()
    assert store.unlink(blob.name) is True
    assert not blob.exists()
    assert store.unlink(blob.name) is False


def test_a_blob_that_is_a_directory_is_not_removed(storage: Path, store: Store) -> None:
    (storage / f"{GUID}.json").mkdir()
    with pytest.raises(OSError, match="irectory|permitted"):
        store.unlink(f"{GUID}.json")
    assert (storage / f"{GUID}.json").is_dir()


def test_the_store_stays_the_one_that_was_opened(storage: Path, store: Store) -> None:
    """The directory is renamed away and another put in its place: nothing is deleted there."""
    guids = make_store(storage, 1)
    storage.rename(storage.with_name("away"))
    make_store(storage, 1)
    assert store.unlink(f"{guids[0]}.json")
    assert (storage / f"{guids[0]}.json").exists()
    assert not (storage.with_name("away") / f"{guids[0]}.json").exists()


def test_a_directory_that_does_not_exist_is_named_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(StoreMissing, match=str(path)), open_store(str(path)):
        pass
    assert not path.exists()


def test_a_file_is_no_storage_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StoreMissing, match="not a directory"), open_store(str(path)):
        pass


@pytest.mark.parametrize("path", ["x" * 5000, "a" * 300])
def test_a_name_too_long_for_a_directory_is_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreError) as caught, open_store(str(tmp_path / path)):
        pass
    assert caught.value.fields["errno"] == "ENAMETOOLONG"


def test_stores_right_below_are_found(storage: Path) -> None:
    make_store(storage / "sessions", 1)
    make_store(storage / "archive", 1)
    make_store(storage / "too" / "deep", 1)
    (storage / "empty").mkdir()
    (storage / "linked").symlink_to(storage / "sessions")
    assert stores_below(str(storage)) == [str(storage / "archive"), str(storage / "sessions")]
    assert stores_below(str(storage / "absent")) == []

"""A repair removes what refers to nothing, and keeps what may yet tell of a session."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from client import Client
from stores import blobs, leftovers, make_store, read_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import StoreError
from storage_manager.base.log import EventLog
from storage_manager.cli import main
from storage_manager.jobs import repair as repair_module
from storage_manager.jobs.repair import adopt, repair
from storage_manager.jobs.work import Terms
from storage_manager.store import commit, locked, recovery
from storage_manager.store.aside import Told
from storage_manager.store.commit import Committer
from storage_manager.store.directory import Store
from storage_manager.store.reading import Reading

TORN = ".metadata.json.torn-20260101T000000Z-aaaaaaaa"
GUID = "11111111-aaaa-4bbb-8ccc-dddddddddddd"
OTHER_GUID = "22222222-aaaa-4bbb-8ccc-dddddddddddd"
HOUR_SECS = 3600

LOG = EventLog(logging.getLogger("repairs"))
logging.getLogger("repairs").addHandler(logging.NullHandler())


def terms(storage: Path) -> Terms:
    return Terms(str(storage), "check", 0.0, 3600.0)


def put(storage: Path, name: str, data: bytes, age_secs: float) -> Path:
    path = storage / name
    path.write_bytes(data)
    os.utime(path, (time.time() - age_secs, time.time() - age_secs))
    return path


def without(name: str, real: Any) -> Any:
    """A listing that lacks a file, as a network file system may give it."""

    @contextmanager
    def scandir(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(fd) as listing:
            yield (item for item in listing if item.name != name)

    return scandir


@pytest.mark.parametrize(
    ("text", "text_age_hours", "blob_age_hours", "is_kept"),
    [
        (b"", 2, None, False),
        (b'{"' + GUID.encode(), 2, None, False),
        (b'{"' + GUID.encode(), 2, 3, True),  # it names it
        (b'{"' + GUID.upper().encode(), 2, 3, False),
        (b"x" * ((1 << 20) - 20) + GUID.encode() + b"x" * (1 << 20), 2, 3, True),  # across two pieces of reading
        (b"0123-" + GUID.encode(), 2, 3, True),  # behind what looks like a beginning
        (b"", 2, 2.1, True),  # the blob was there when the writer began
        (b"", 2, 1, True),  # and it may have gone on since
        (b"", 0.1, None, True),  # it may be writing
        (b"", -5, None, True),
    ],
)
def test_unfinished_text_stays_while_it_may_tell_of_a_session(
    storage: Path, text: bytes, text_age_hours: float, blob_age_hours: float | None, is_kept: bool
) -> None:
    make_store(storage, 1)
    put(storage, TORN, text, text_age_hours * HOUR_SECS)
    if blob_age_hours is not None:
        put(storage, f"{GUID}.json", b"x", blob_age_hours * HOUR_SECS)
    done = repair(terms(storage), Clock(), LOG)
    assert (list(done.kept), list(done.removed)) == (([TORN], []) if is_kept else ([], [TORN]))
    assert leftovers(storage) == [TORN] * is_kept


@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_unfinished_text_of_any_date_is_judged(
    storage: Path, monkeypatch: pytest.MonkeyPatch, moment: datetime
) -> None:
    """Not every file system keeps such a date."""
    make_store(storage, 1)
    put(storage, TORN, b"", 2 * HOUR_SECS)
    monkeypatch.setattr(repair_module, "told_by", lambda store, name: Told(moment, set(), set()))
    assert list(repair(terms(storage), Clock(), LOG).kept) == ([TORN] if moment == datetime.max else [])


@pytest.mark.parametrize(("text", "is_kept"), [(GUID, True), (GUID.upper(), False), ("", False)])
@pytest.mark.parametrize("extension", ["json", "png"])
def test_unfinished_text_stays_when_the_listing_lacks_the_blob_that_it_names(
    storage: Path, monkeypatch: pytest.MonkeyPatch, text: str, is_kept: bool, extension: str
) -> None:
    """Its format is that of another session, or told by the text itself."""
    make_store(storage, 1)
    text = f'{{"{text}": {{"format" : "{extension}", "si'
    put(storage, TORN, ("x" * ((1 << 20) - 40 - len(text) // 2) + text).encode(), 2 * HOUR_SECS)
    blob = put(storage, f"{GUID}.{extension}", b"x", 3 * HOUR_SECS)
    real = os.scandir

    @contextmanager
    def scandir(where: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(where) as items:
            yield (item for item in items if item.name != blob.name)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(repair(terms(storage), Clock(), LOG).kept) == [TORN] * is_kept


def test_a_dangling_entry_whose_blob_comes_back_stays(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, back = make_store(storage, 2)
    for guid in (gone, back):
        (storage / f"{guid}.json").unlink()
    real = Committer.prepare

    def prepare(self: Committer, *arguments: object) -> None:
        (storage / f"{back}.json").write_bytes(b"x" * 1000)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Committer, "prepare", prepare)
    assert repair(terms(storage), Clock(), LOG).swept_count == 1
    assert set(read_entries(storage)) == {back}


def test_an_adoption_that_a_client_undoes_is_made_again(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that read before it writes nearly a second after it."""
    make_store(storage, 1)
    put(storage, f"{GUID}.json", b"x", HOUR_SECS)
    client = Client(storage)
    before = client.read()
    undone: list[float] = []

    class Late(Clock):
        def pause(self, secs: float) -> None:
            super().pause(secs)
            if not undone and GUID in client.read() and time.time() - client.metadata.stat().st_mtime > 0.7:
                client.write(before)
                undone.append(secs)

    assert [orphan.guid for orphan in adopt(terms(storage), "lost", Late(), LOG).adopted] == [GUID]
    assert undone and GUID in read_entries(storage)


def test_an_adoption_that_a_client_leaves_no_moment_for_leaves_the_orphans(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 1)
    put(storage, f"{GUID}.json", b"x", HOUR_SECS)
    monkeypatch.setattr(Reading, "unchanged", lambda self: False)
    monkeypatch.setattr(commit, "PUT_BACK_PATIENCE_SECS", 0.05)
    monkeypatch.setattr(recovery, "PUT_BACK_PATIENCE_SECS", 0.05)
    adoption = adopt(terms(storage), "lost", Clock(), LOG)
    assert (adoption.adopted, adoption.left_count, adoption.undone_count) == ([], 1, 1)
    assert [orphan.guid for orphan in adoption.later] == [GUID]
    assert list(read_entries(storage)) == guids
    assert leftovers(storage) == []


@pytest.mark.parametrize("name", [".metadata.json.prev", ".metadata.json.prev.8", TORN])
def test_a_blob_whose_entry_waits_to_be_put_back_is_no_orphan(
    storage: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither is it given another entry, nor purged, while a client at full speed keeps its own from coming back."""
    guids = make_store(storage, 2)
    for guid in (GUID, OTHER_GUID):
        put(storage, f"{guid}.json", b"x", HOUR_SECS)
    text = (storage / "metadata.json").read_text()
    (storage / name).write_text(json.dumps({GUID: json.loads(text)[guids[0]]}))
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(commit, "PUT_BACK_PATIENCE_SECS", 0.05)

    def purge() -> int:
        return main(["--storage-dir", str(storage), "purge", "--orphans", "--age-days", "0", "--yes"])

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "unchanged", lambda self: False)
        patch.setattr(recovery, "PUT_BACK_PATIENCE_SECS", 0.05)
        adoption = adopt(terms(storage), "lost", Clock(), LOG)
        assert [orphan.guid for orphan in adoption.later] == [OTHER_GUID] and adoption.left_count == 2
        patch.setattr(os, "scandir", without(name, os.scandir) if name != TORN else os.scandir)
        assert purge() == 0
    assert blobs(storage) == {*guids, GUID} and (storage / "metadata.json").read_text() == text
    (storage / name).unlink()
    assert purge() == 0 and blobs(storage) == set(guids)


def test_orphans_stay_while_it_cannot_be_told_what_waits(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(storage, 1)
    put(storage, f"{GUID}.json", b"x", HOUR_SECS)

    def failing(store: Store, name: str) -> Told:
        raise StoreError("read", name, OSError(errno.EIO, os.strerror(errno.EIO)))

    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(locked, "told_by", failing)
    assert main(["--storage-dir", str(storage), "purge", "--orphans", "--age-days", "0", "--yes"]) == 1
    assert "cannot read .metadata.json.prev: Input/output error" in capfd.readouterr().err
    assert (storage / f"{GUID}.json").exists()


def test_text_that_is_whole_stays_until_it_is_certain_that_its_entries_do(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 2)
    put(storage, TORN, (storage / "metadata.json").read_bytes(), 2 * HOUR_SECS)
    with monkeypatch.context() as patch:
        patch.setattr(Committer, "put_back", lambda *arguments: False)
        assert repair(terms(storage), Clock(), LOG).kept == [TORN]
    assert repair(terms(storage), Clock(), LOG) == (0, [], []) and leftovers(storage) == []


def test_metadata_that_a_client_creates_meanwhile_stays(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(storage, f"{GUID}.json", b"x", HOUR_SECS)
    saved: list[str] = []
    real = os.link

    def link(source: str, target: str, **options: int | bool) -> None:
        if target == "metadata.json":
            saved.append(Client(storage).save())
        real(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link)
    assert len(adopt(terms(storage), "lost", Clock(), LOG).adopted) == 1
    assert set(read_entries(storage)) == {GUID, *saved} and len(saved) == 1
    assert leftovers(storage) == []


def test_without_hard_links_metadata_is_not_created(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(storage, f"{GUID}.json", b"x", HOUR_SECS)

    def link(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="let the service create it first"):
        adopt(terms(storage), "lost", Clock(), LOG)
    assert sorted(os.listdir(storage)) == [f"{GUID}.json"]

"""A look at a store: what it waits for, and what it says meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stores import make_store

from storage_manager.base.clock import Clock
from storage_manager.base.errors import ListingIncomplete, MetadataCorrupt
from storage_manager.base.log import EventLog, build_logger
from storage_manager.store.directory import open_store
from storage_manager.store.snapshot import UNREADABLE, Snapshot
from storage_manager.store.survey import LISTINGS, survey


class Passing(Clock):
    """A clock whose pauses take no time, and during which something may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.secs = 0.0
        self.mended_at = float("inf")
        self.mend = lambda: None

    def monotonic(self) -> float:
        return self.secs

    def pause(self, secs: float) -> None:
        self.secs += secs
        if self.secs >= self.mended_at:
            self.mend()


class Heard(EventLog):
    """A log that remembers the keys of its events."""

    def __init__(self) -> None:
        super().__init__(build_logger(None, True, 10))
        self.keys: list[str] = []

    def warning(self, event: str, message: str, **fields: object) -> None:
        self.keys.append(event)


@pytest.fixture
def torn(storage: Path) -> Path:
    make_store(storage, 3, 100)
    metadata = storage / "metadata.json"
    metadata.write_bytes(metadata.read_bytes()[:-2])
    return metadata


def test_it_says_once_what_it_waits_for(torn: Path) -> None:
    log = Heard()
    with open_store(str(torn.parent)) as store, pytest.raises(MetadataCorrupt):
        survey(store, Passing(), log)
    assert log.keys == ["storage_manager.metadata_torn"]


@pytest.mark.parametrize(("mended_at", "told"), [(1.0, 0), (20.0, 1)])
def test_a_file_that_is_finished_in_time_is_read(torn: Path, mended_at: float, told: int) -> None:
    """And nobody is told of what is over at once."""
    text = torn.read_bytes()
    clock, log = Passing(), Heard()
    clock.mended_at = mended_at
    clock.mend = lambda: (torn.write_bytes(text + b"\n}"), None)[1]
    with open_store(str(torn.parent)) as store:
        snapshot, reading = survey(store, clock, log)
    assert reading is not None
    reading.close()
    assert len(snapshot.sessions) == 3
    assert len(log.keys) == told


# --- listings that are short


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many items each listing is cut, one after the other; those that follow are whole."""
    lengths: list[int] = []
    real = os.scandir

    @contextmanager
    def scandir(where: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(where) as items:
            yield iter(list(items)[: lengths.pop(0) if lengths else None])

    monkeypatch.setattr(os, "scandir", scandir)
    return lengths


def look(storage: Path) -> Snapshot:
    with open_store(str(storage)) as store:
        snapshot, reading = survey(store, Passing(), Heard())
        assert reading is not None
        reading.close()
    return snapshot


@pytest.mark.parametrize("times", range(LISTINGS + 2))
def test_a_short_listing_is_taken_again_and_then_refused(storage: Path, cut: list[int], times: int) -> None:
    make_store(storage, 5)
    cut += [3] * times
    before = len(os.listdir("/proc/self/fd"))
    if times < LISTINGS:
        assert len(look(storage).sessions) == 5
        return
    with pytest.raises(ListingIncomplete, match="Check the disk") as caught:
        look(storage)
    fields = caught.value.fields
    assert fields["unlisted_count"] in (2, 3)  # metadata.json is listed, too
    assert fields["file"] == str(storage) and (storage / str(fields["example"])).exists()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_blob_that_cannot_be_looked_up_is_not_missing(
    storage: Path, cut: list[int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Only ENOENT is absence."""
    guids = make_store(storage, 5)
    hidden = f"{guids[1]}.json"
    real = os.stat
    (storage / f"{guids[3]}.json").unlink()

    def stat(name: Any, **options: Any) -> os.stat_result:
        if name == hidden:
            raise OSError(code, os.strerror(code))
        return real(name, **options)

    (storage / hidden).unlink()  # the listing lacks it for whatever reason
    monkeypatch.setattr(os, "stat", stat)
    snapshot = look(storage)
    assert [session.guid for session in snapshot.dangling] == [guids[3]]
    assert [(anomaly.kind, anomaly.name) for anomaly in snapshot.anomalies] == [(UNREADABLE, hidden)]
    assert errno.errorcode[code] in snapshot.anomalies[0].detail

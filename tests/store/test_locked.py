"""What is around every run: the lock is let go, whatever happens, and a failure is told once."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from stores import leftovers, make_store, read_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    Interrupted,
    LockBusy,
    NotWritable,
    StorageManagerError,
    StoreError,
    StoreMissing,
)
from storage_manager.base.log import EventLog
from storage_manager.jobs.progress import Progress, reporting
from storage_manager.store import locked as locked_module
from storage_manager.store import survey as survey_module
from storage_manager.store.locked import locked_store

GUID = "11111111-aaaa-4bbb-8ccc-dddddddddddd"

logging.getLogger("transactions").addHandler(logging.NullHandler())


class Told(EventLog):
    def __init__(self) -> None:
        super().__init__(logging.getLogger("transactions"))
        self.keys: list[str] = []

    def error(self, event: str, message: str, **fields: object) -> None:
        self.keys.append(event)

    def warning(self, event: str, message: str, **fields: object) -> None:
        self.keys.append(event)


def test_the_lock_is_let_go_whatever_happens(storage: Path) -> None:
    make_store(storage, 1)
    for failure in (ValueError, KeyboardInterrupt):
        with pytest.raises(failure), locked_store(str(storage), "test", 0.0, 3600.0, Clock(), Told()):
            assert leftovers(storage) == [".prune_size.lock"]
            raise failure
        assert leftovers(storage) == []


def test_nobody_else_gets_in(storage: Path) -> None:
    with locked_store(str(storage), "test", 0.0, 3600.0, Clock(), Told()), pytest.raises(LockBusy):
        with locked_store(str(storage), "test", 0.0, 3600.0, Clock(), Told()):
            raise AssertionError("both are in")


def test_a_stop_inside_is_remembered_until_the_end(storage: Path) -> None:
    clock = Clock()
    reached = []
    with pytest.raises(Interrupted), locked_store(str(storage), "test", 0.0, 3600.0, clock, Told()):
        clock._on_stop(15, None)
        reached.append(True)
    assert reached and leftovers(storage) == []


def test_what_a_writer_has_finished_after_all_is_seen(storage: Path) -> None:
    make_store(storage, 1)
    (storage / f"{GUID}.json").write_bytes(b"x")
    os.utime(storage / f"{GUID}.json", (1, 1))
    entry = {"format": "json", "created_at": "2026-01-01T00:00:00"}
    (storage / ".metadata.json.torn-20260101T000000Z-aaaaaaaa").write_text(json.dumps({GUID: entry}))
    with locked_store(str(storage), "test", 0.0, 3600.0, Clock(), Told()) as locked:
        snapshot, reading = locked.look()
        assert reading is not None
        reading.close()
    assert GUID in {session.guid for session in snapshot.sessions} and snapshot.anomalies == []
    assert GUID in read_entries(storage)


def test_a_look_that_fails_after_a_merge_closes_nothing_twice(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 1)
    (storage / ".metadata.json.torn-20260101T000000Z-aaaaaaaa").write_text("{}")
    real, others = survey_module.survey, []

    def survey(*arguments: Any) -> Any:
        if others:
            others.append(os.open("/dev/null", os.O_RDONLY))  # as the log file may be, opened anew
            raise StoreError("list", str(storage), OSError(errno.EIO, os.strerror(errno.EIO)))
        others.append(-1)
        return real(*arguments)

    monkeypatch.setattr(locked_module, "survey", survey)
    with locked_store(str(storage), "test", 0.0, 3600.0, Clock(), Told()) as locked:
        with pytest.raises(StoreError):
            locked.look()
        os.close(others[1])


@pytest.mark.parametrize(
    ("error", "keys"),
    [
        (LockBusy("busy", {}), ["storage_manager.prune.lock_busy"]),
        (NotWritable("not writable"), ["storage_manager.repair.failed"]),
        (StoreMissing("missing"), []),
    ],
)
def test_a_failure_is_told_once(error: StorageManagerError, keys: list[str]) -> None:
    log = Told()
    with pytest.raises(type(error)), reporting("repair", "/srv/store", Progress(), log):
        raise error
    assert log.keys == keys and error.reported == bool(keys)

"""A look at a store: what it waits for, and what it says meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import make_store

from storage_manager.base.clock import Clock
from storage_manager.base.errors import MetadataCorrupt
from storage_manager.base.log import EventLog, build_logger
from storage_manager.store.directory import open_store
from storage_manager.store.survey import survey


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
